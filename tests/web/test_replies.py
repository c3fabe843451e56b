"""Replies: each belongs to one request, and nothing else reads or writes it."""

import asyncio
from collections.abc import Collection, Iterator, Mapping

import pytest

from flowkit import App, Objects, web
from flowkit.ports import Asked
from flowkit.web.replies import Replies
from tests.support.shop import Base, Order
from tests.support.waiting import wait_until
from tests.support.web_site import Site

OWN = "flowkit:reply:"
"""What the keys of replies began with when they were objects."""


def confirming() -> App:
    app = App("shop", metadata=Base.metadata)

    @app.flow(web.post("/orders/confirm", reply=True))
    def confirm(order: Order) -> str:
        return f"confirmed {order.name}"

    @app.flow(web.post("/ord", reply="300ms"))
    def other(order: Order) -> str:
        return f"other {order.name}"

    @app.flow(web.post("/named", reply=True), id_from="name")
    async def named(order: Order) -> str:
        return f"named {order.name[:1]}"

    @app.flow(web.post("/objects", reply=True))
    def peek(keys: list[str], objects: Objects) -> list[str | None]:
        found = [objects.get(key) for key in keys]
        for key in keys:
            objects.put(key, "forged")
        return found

    return app


@pytest.fixture
def site(database_url: str) -> Iterator[Site]:
    made = Site(database_url, confirming())
    yield made
    made.close()


def test_a_reply_is_told_to_its_own_route_and_key_only(site: Site) -> None:
    confirmed = site.client.post("/orders/confirm", json={"name": "a"}, headers={"idempotency-key": "7777"})
    assert confirmed.json() == "confirmed a"
    key = {"idempotency-key": "ers/confirm7777"}
    assert site.client.post("/ord", json={"name": "b"}, headers=key).json() == "other b"
    again = site.client.post("/orders/confirm", json={"name": "a"}, headers={"idempotency-key": "7777"})
    assert again.json() == "confirmed a", "another request has written over the reply"


def test_a_handlers_objects_hold_no_replies(site: Site) -> None:
    key = {"idempotency-key": "7777"}
    site.client.post("/orders/confirm", json={"name": "a"}, headers=key)
    keys = [OWN + "POST /orders/confirm7777", "POST /orders/confirm7777", "7777"]
    assert site.client.post("/objects", json=keys).json() == [None, None, None]
    assert site.client.post("/orders/confirm", json={"name": "a"}, headers=key).json() == "confirmed a"


def test_a_key_that_is_taken_at_the_door_gets_its_reply(site: Site) -> None:
    for length in (240, 255):
        key = {"idempotency-key": "k" * length}
        answer = site.client.post("/orders/confirm", json={"name": str(length)}, headers=key)
        assert (answer.status_code, answer.json()) == (200, f"confirmed {length}")
        assert site.client.post("/named", json={"name": "n" * length}).json() == "named n"
    key = {"idempotency-key": "k" * 256}
    refused = site.client.post("/orders/confirm", json={"name": "a"}, headers=key)
    assert (refused.status_code, "1 to 255 characters" in refused.json()["detail"]) == (400, True)
    refused = site.client.post("/named", json={"name": "n" * 256})
    assert (refused.status_code, "1 to 255 characters" in refused.json()["detail"]) == (422, True)
    wait_until(lambda: site.store.ledger.unfinished(list(site.worker.app.flows)) == 0)
    assert sum(one.dead for one in site.store.ledger.balances().values()) == 0


def test_a_look_that_fails_is_told_and_the_next_one_finds_the_reply(caplog: pytest.LogCaptureFixture) -> None:
    asked, errors = Asked("route", "", "1"), [KeyError("a mistake")]

    def look(requests: Collection[Asked]) -> Mapping[Asked, bytes]:
        if errors:
            raise errors.pop()
        return {asked: b"yes"}

    async def wait() -> bytes | None:
        return await Replies(look).wait(asked, 3)

    assert asyncio.run(wait()) == b"yes"
    (record,) = [one for one in caplog.records if one.name == "flowkit.http"]
    assert "replies could not be read" in record.message
    assert record.exc_info is not None and "a mistake" in str(record.exc_info[1])
