"""Who may know of a request: the principal that sent it, or the bearer of the token that FlowKit gave for it."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from openapi_spec_validator import validate
from sqlalchemy.orm import Session

from flowkit import App, DefinitionError, Message, web
from flowkit.services import open_store
from flowkit.settings import Settings
from tests.support.shop import Base, Effect, Order
from tests.support.waiting import wait_until
from tests.support.web_site import Site

A, B = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
KEY = {"idempotency-key": "one"}
CONTENT = {"name": "a"}


def by_token(head: web.Head) -> str:
    """The principal `b` is called `ü b`."""
    scheme, _, token = head.headers.get("authorization", "").partition(" ")
    if scheme != "Bearer" or token not in ("a", "b"):
        raise web.Unauthorized("this token is unknown")
    return "ü b" if token == "b" else "a"


async def by_user(head: web.Head) -> str:
    if head.headers.get("x-user") == "broken":
        raise ValueError("a mistake in the hook")
    return head.headers.get("x-user", "")


def closed() -> App:
    app = App("shop", metadata=Base.metadata)

    @app.flow(web.post("/orders", principal=by_token, reply=True))
    def accept(order: Order, message: Message, db: Session) -> str:
        db.add(Effect(name=f"{message.source} {order.name}"))
        return f"for {message.source}"

    @app.flow(web.post("/users", principal=by_user, rate=1))
    def use(order: Order, message: Message, db: Session) -> None:
        db.add(Effect(name=f"{message.source} {order.name}"))

    return app


def open_to_all() -> App:
    app = App("shop", metadata=Base.metadata)

    @app.flow(web.post("/orders", reply=True))
    def accept(order: Order) -> str:
        return "a secret"

    @app.flow(web.post("/notes"))
    def note(order: Order) -> None: ...

    @app.flow(web.post("/news", status="public"))
    def tell(order: Order) -> None: ...

    return app


@pytest.fixture
def site(sqlite_url: str) -> Iterator[Site]:
    made = Site(sqlite_url, closed())
    yield made
    made.close()


@pytest.fixture
def unclosed(sqlite_url: str) -> Iterator[Site]:
    made = Site(sqlite_url, open_to_all())
    yield made
    made.close()


def test_two_principals_with_one_key_send_two_requests(site: Site) -> None:
    for _ in range(2):
        first = site.client.post("/orders", json=CONTENT, headers=A | KEY)
        second = site.client.post("/orders", json={"name": "b"}, headers=B | KEY)
        assert (first.json(), second.json()) == ("for shop/a", "for shop/ü b")
    assert site.effects() == {"shop/a a": 1, "shop/ü b b": 1}
    refused = site.client.post("/orders", json={"name": "b"}, headers=A | KEY)
    assert refused.status_code == 422, "the content that another principal sent under this key is not a's"


def test_a_principal_is_told_of_its_own_requests_only(site: Site) -> None:
    answer = site.client.post("/orders", json=CONTENT, headers=A | KEY)
    status = answer.headers["content-location"]
    assert site.client.get(status, headers=A).json()["reply"] == "for shop/a"
    assert site.client.get(status, headers=B).status_code == 404
    site.client.post("/orders", json=CONTENT, headers=B | KEY)
    assert site.client.get(status, headers=B).json()["reply"] == "for shop/ü b"
    unknown = site.client.get(status)
    assert (unknown.status_code, unknown.json()["detail"]) == (401, "this token is unknown")
    assert unknown.headers["www-authenticate"] == "Bearer"


def test_a_request_that_a_hook_refuses_is_not_accepted(site: Site) -> None:
    for path, headers in (
        ("/orders", {}),
        ("/orders", {"authorization": "Bearer other"}),
        ("/users", {}),
        ("/users", {"x-user": "u" * 255}),
    ):
        answer = site.client.post(path, json=CONTENT, headers={**headers, **KEY})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
    assert site.client.post("/users", json=CONTENT, headers={"x-user": "broken"}).status_code == 500
    assert site.client.post("/users", json=CONTENT, headers={"x-user": "me"}).status_code == 202, (
        "requests without a principal use up no rate of those that have one"
    )
    wait_until(lambda: site.effects() == {"shop/me a": 1})
    assert site.store.ledger.balances()["shop.accept"].accepted == 0


def test_a_status_is_told_to_the_token_of_its_url_only(unclosed: Site) -> None:
    site = unclosed
    status = {path: accepted(site, path) for path in ("/orders", "/notes", "/news")}
    for path, flow in (("/orders", "accept"), ("/notes", "note"), ("/news", "tell")):
        wait_until(lambda: site.client.get(status[path]).json()["state"] == "applied")  # noqa: B023
        assert site.client.get(status[path]).json()["flows"] == {f"shop.{flow}": "applied"}
    assert site.client.get(status["/orders"]).json()["reply"] == "a secret"
    assert "reply" not in site.client.get(status["/notes"]).json()
    guessed, _, token = status["/orders"].partition("?token=")
    assert site.client.get(guessed).json()["flows"] == {"shop.tell": "applied"}, "its status is public"
    other = site.client.post("/notes", json=CONTENT, headers={"idempotency-key": "two"}).json()["status"]
    for forged in ("", "?", "é", token[:-1], token + "a", token.upper(), other.partition("?token=")[2]):
        answer = site.client.get(guessed, params={"token": forged})
        assert answer.status_code == 404, forged


def accepted(site: Site, path: str) -> str:
    """The status URL of a request."""
    answer = site.client.post(path, json=CONTENT, headers=KEY)
    status: str = answer.headers["content-location" if answer.status_code == 200 else "location"]
    return status


def test_every_instance_of_a_store_knows_its_tokens_and_no_other_store_does(
    unclosed: Site, postgresql_url: str
) -> None:
    status = accepted(unclosed, "/notes")
    other = Site(unclosed.services.settings.database_url, open_to_all())
    try:
        assert other.client.get(status).status_code == 200
    finally:
        other.close()
    stranger = Site(postgresql_url, open_to_all())
    try:
        assert accepted(stranger, "/notes") != status
        assert stranger.client.get(status).status_code == 404
    finally:
        stranger.close()


def test_a_store_has_a_key_of_its_own(database_url: str) -> None:
    with closing(open_store(Settings(database_url=database_url), check=False)) as store:
        store.schema.upgrade()
        key = store.key()
        assert len(key) == 32
        store.schema.upgrade()
        assert store.key() == key, "an upgrade keeps it"
        store.place.adopt(apart=True)
        assert store.key() != key, "a copy that goes on by itself has another one"


def test_the_document_says_which_routes_want_a_principal(site: Site) -> None:
    document = site.admin.get("/flowkit/openapi.json").json()
    validate(document)
    assert "401" in document["paths"]["/orders"]["post"]["responses"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"principal": by_token, "status": "public"}, 'leave out status="public"'),
        ({"status": "open"}, "status='open'"),
        ({"principal": "me"}, "principal='me'"),
    ],
)
def test_a_route_that_is_wrong_is_told_when_it_is_defined(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        web.post("/a", **options)
