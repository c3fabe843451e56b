"""The HTTP ingress while the store is away: nothing is accepted, and clients are told to come again."""

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from flowkit import StoreUnavailable
from flowkit.errors import CommitUnknown
from flowkit.publisher import Publisher, Waiting
from flowkit.store.unit import SqlUnit
from tests.support.waiting import wait_until
from tests.support.web_site import Site, shop

pytestmark = pytest.mark.migrated


@pytest.fixture
def site(database_url: str) -> Iterator[Site]:
    made = Site(database_url, shop())
    yield made
    made.close()


def test_while_the_store_is_away_nothing_is_accepted_and_clients_are_told_to_come_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(unit: SqlUnit) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(SqlUnit, "commit", away)
        answer = site.client.post("/orders", json={"name": "a"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "nothing was accepted" in answer.json()["detail"]
    assert site.store.ledger.balances().get("shop.accept") is None or not site.effects()


@pytest.mark.parametrize("question", ["states", "replies"])
def test_who_asks_for_a_status_while_the_store_is_away_is_told_to_come_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    def away(*arguments: object) -> None:
        raise StoreUnavailable("the store at db.internal:5432 is away")

    status = site.client.post("/orders", json={"name": "a"}).json()["status"]
    monkeypatch.setattr(site.store.answers, question, away)
    answer = site.client.get(status)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["detail"].startswith("the store cannot be reached now;"), "it names no host"


def test_what_may_have_been_stored_is_stored_once_when_it_is_sent_again_as_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = SqlUnit.commit

    def unknown(unit: SqlUnit) -> None:
        commit(unit)
        if unit._lane.startswith("publish-"):  # a lease of the worker that is lost like this is over in 30 s only
            raise CommitUnknown("the connection was lost")

    with monkeypatch.context() as patched:
        patched.setattr(SqlUnit, "commit", unknown)
        answer = site.client.post("/orders", json={"name": "a"})
    assert answer.status_code == 503
    key = {"idempotency-key": answer.json()["id"]}
    assert "Idempotency-Key: " + answer.json()["id"] in answer.json()["detail"]
    assert site.client.post("/orders", json={"name": "b"}, headers=key).status_code == 422
    assert site.client.post("/orders", json={"name": "a"}, headers=key).status_code == 202
    wait_until(lambda: site.store.ledger.unfinished(["shop.accept"]) == 0)
    assert site.effects() == {"accept a": 1}


def test_a_store_that_is_away_is_not_asked_once_for_each_request(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away(self: Publisher, messages: object, optional: object) -> set[str]:
        asked.append(messages)
        raise StoreUnavailable("it is away")

    monkeypatch.setattr(Publisher, "_accept", away)
    waiting: list[Waiting] = [([], Future()) for _ in range(100)]
    Publisher(site.services.store, site.worker.app.context(site.services)).commit(waiting)
    assert all(isinstance(future.exception(), StoreUnavailable) for _, future in waiting)
    assert len(asked) == 2, "together, and one to see whose fault it is"
