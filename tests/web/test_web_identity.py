"""What identifies a request: its Idempotency-Key, or what `id_from` names, a header or a field of it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate
from sqlalchemy.orm import Session

from flowkit import App, DefinitionError, web
from tests.support.shop import Base, Effect, Order
from tests.support.waiting import wait_until
from tests.support.web_site import Site

DELIVERY = "X-GitHub-Delivery"


def hooks() -> App:
    app = App("shop", metadata=Base.metadata)

    @app.flow(web.post("/hooks", status="public"), id_from=web.header(DELIVERY))
    def hook(order: Order, db: Session) -> None:
        db.add(Effect(name=f"hook {order.name}"))

    @app.flow(web.post("/orders"), id_from="name")
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=f"accept {order.name}"))

    @app.flow(web.put("/orders/{number}"), id_from=lambda request: f"{request.number}/{request.order.name}")
    def change(order: Order, number: int, db: Session) -> None:
        db.add(Effect(name=f"change {number} {order.name}"))

    return app


@pytest.fixture
def site(sqlite_url: str) -> Iterator[Site]:
    made = Site(sqlite_url, hooks())
    yield made
    made.close()


def test_a_header_identifies_a_request(site: Site) -> None:
    for number in range(12):
        answer = site.client.post("/hooks", json={"name": str(number % 5)}, headers={DELIVERY: f"d-{number % 5}"})
        assert (answer.status_code, answer.json()["id"]) == (202, f"d-{number % 5}")
    wait_until(lambda: site.store.ledger.unfinished(["shop.hook"]) == 0)
    assert site.effects() == {f"hook {number}": 1 for number in range(5)}
    assert site.client.get("/flowkit/messages/d-0").json()["state"] == "applied"


def test_a_request_without_its_identity_is_refused_by_name(site: Site) -> None:
    content: dict[str, Any] = {"name": "a"}
    for headers, said in (
        ({}, f"{DELIVERY}: this header is missing, and it identifies the requests to POST /hooks"),
        ({DELIVERY: ""}, f"{DELIVERY}: it has to be 1 to 255 characters of visible ASCII"),
        ({DELIVERY: "x" * 256}, f"{DELIVERY}: it has to be 1 to 255 characters of visible ASCII"),
        (
            {DELIVERY: "one", "idempotency-key": "two"},
            f"Idempotency-Key: {DELIVERY} identifies the requests to POST /hooks; leave the key out, or send the same",
        ),
    ):
        answer = site.client.post("/hooks", json=content, headers=headers)
        assert (answer.status_code, answer.json()["detail"]) == (400, said)
    same = {DELIVERY: "one", "idempotency-key": "one", "flowkit-request-id": "a try of the balancer"}
    assert site.client.post("/hooks", json=content, headers=same).json()["id"] == "one"
    answer = site.client.post("/orders", json={"name": ""})
    assert (answer.status_code, "which is no id" in answer.json()["detail"]) == (422, True)


def test_the_same_identity_with_something_else_is_refused(site: Site) -> None:
    one = {DELIVERY: "one"}
    assert site.client.post("/hooks", json={"name": "a"}, headers=one).status_code == 202
    answer = site.client.post("/hooks", json={"name": "b"}, headers=one)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(f"{DELIVERY} one: it was accepted before with another path, query or")
    assert site.client.post("/orders", json={"name": "a"}).json()["id"] == "a"
    answer = site.client.post("/orders", json={"name": "a", "deed": "other"})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("name a: it was accepted before with another path, query or content")


def test_a_field_or_a_function_identifies_a_request(site: Site) -> None:
    for _ in range(3):
        assert site.client.post("/orders", json={"name": "a"}).json()["id"] == "a"
        assert site.client.put("/orders/7", json={"name": "ü"}).json()["id"] == "7/ü"
    status = site.client.put("/orders/7", json={"name": "ü"}).json()["status"]
    wait_until(lambda: site.client.get(status).json()["state"] == "applied")
    wait_until(lambda: site.store.ledger.unfinished(["shop.accept"]) == 0)
    assert site.effects() == {"accept a": 1, "change 7 ü": 1}


def test_the_document_says_what_identifies_a_request(site: Site) -> None:
    document = site.admin.get("/flowkit/openapi.json").json()
    validate(document)
    post, put = document["paths"]["/hooks"]["post"], document["paths"]["/orders/{number}"]["put"]
    named = [(one["name"], one["in"], one["required"]) for one in post["parameters"]]
    assert named == [(DELIVERY, "header", True)]
    assert post["description"] == f"{DELIVERY} identifies it: sent again under the same, it is accepted once"
    assert [one["name"] for one in put["parameters"]] == ["number"]
    assert put["description"] == "Its arguments identify it: sent again under the same, it is accepted once"


def take(order: Order) -> None: ...


@pytest.mark.parametrize(
    ("define", "said"),
    [
        (
            lambda app: app.flow(app.channel("in", Order), id_from=web.header("X-Id"), name="take")(lambda body: None),
            "flow shop.take: id_from names the header X-Id of a request, but its source is channel in, whose messages "
            'come without one; name a field of the body: id_from="…"',
        ),
        (
            lambda app: app.flow(app.channel("in", Order), id_from="name", name="take")(lambda body: None),
            "flow shop.take: id_from finds the id of what other programs send, but channel in is for this app alone; "
            "declare it shared=True, or give the id where you publish: app.publish(…, id=…)",
        ),
        (
            lambda app: app.flow(web.post("/in"), id_from="nmae")(take),
            "flow shop.take: id_from='nmae', but its body has no field nmae; its fields are name, deed",
        ),
        (lambda app: web.header("no header"), "web.header('no header'): this is no name of a header"),
    ],
)
def test_an_identity_that_cannot_be_is_refused_when_it_is_defined(define: Callable[[App], object], said: str) -> None:
    app = App("shop")
    with pytest.raises(DefinitionError) as refused:
        define(app)
        app.check()
    assert str(refused.value).startswith(said)
