"""The HTTP ingress: a request is a message, and answered when that is stored."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest
from openapi_spec_validator import validate

from flowkit import App, DefinitionError, StoreUnavailable, web
from flowkit.cli import direct
from flowkit.errors import Reused
from flowkit.message import MAX_BODY
from flowkit.model.outbox import Outgoing, compose
from flowkit.publisher import Publisher, Waiting
from flowkit.store.unit import SqlUnit
from flowkit.web import content
from flowkit.web.route import MAX_CONTENT, Route
from tests.support.waiting import wait_until
from tests.support.web_site import JSON, SECONDS, Site, shop

pytestmark = pytest.mark.migrated


@pytest.fixture
def site(database_url: str) -> Iterator[Site]:
    made = Site(database_url, shop())
    yield made
    made.close()


def test_a_request_is_stored_before_it_is_answered_and_then_applied(site: Site) -> None:
    answer = site.client.post("/orders", json={"name": "a"})
    assert answer.status_code == 202
    status = answer.json()["status"]
    assert answer.headers["location"] == status
    wait_until(lambda: site.client.get(status).json()["state"] == "applied")
    assert site.client.get(status).json()["flows"] == {"shop.accept": "applied"}
    assert site.effects() == {"accept a": 1}


def test_path_query_and_content_become_arguments_by_their_types(site: Site) -> None:
    client = site.client
    assert client.put("/customers/c%20d/orders/7?tags=x&tags=y&urgent=yes", json={"name": "n"}).status_code == 202
    assert client.put("/customers/e/orders/8", json={"name": "n"}).status_code == 202
    assert client.delete("/orders/9").status_code == 202
    assert client.post("/notes", content="häh".encode(), headers={"content-type": "text/plain"}).status_code == 202
    expected = {"c d 7 n ['x', 'y'] True": 1, "e 8 n None False": 1, "cancel 9": 1, "note häh": 1}
    wait_until(lambda: len(site.effects()) == len(expected))
    assert site.effects() == expected


JSON_HEAD = b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "said"),
    [
        ("POST", "/orders", b'{"name": 1}', JSON, 422, "name: Input should be a valid string"),
        ("POST", "/orders", b"{}", JSON, 422, "name: Field required"),
        ("POST", "/orders", b'{"name":', JSON, 400, "Invalid JSON"),
        ("POST", "/orders", b"", JSON, 400, "Invalid JSON"),
        ("POST", "/orders", b'{"name": "\xff"}', JSON, 400, "Invalid JSON"),
        ("POST", "/orders", b"name=a", {"content-type": "application/x-www-form-urlencoded"}, 415, "takes application"),
        ("POST", "/orders", b"[" * 100_000, JSON, 400, "Invalid JSON"),
        ("POST", "/orders", b'{"name": "a"}', {**JSON, "idempotency-key": "k" * 256}, 400, "Idempotency-Key"),
        ("POST", "/notes", b"\xff", {}, 422, "not UTF-8"),
        ("PUT", "/customers/c/orders/seven", b'{"name": "n"}', JSON, 422, "number: Input should be a valid integer"),
        ("PUT", "/customers/c/orders/7?urgent=maybe", b'{"name": "n"}', JSON, 422, "urgent: Input should be a valid"),
        ("PUT", "/customers/c/orders/7?urgent=1&urgent=0", b'{"name": "n"}', JSON, 422, "urgent: it came more than"),
        ("PUT", "/customers/c/orders/7?other=1", b'{"name": "n"}', JSON, 422, "other: there is no such query"),
        ("DELETE", "/orders/7", b"x", {}, 400, "takes no content"),
        ("GET", "/orders", b"", {}, 405, "Method Not Allowed"),
        ("POST", "/nowhere", b"", {}, 404, "Not Found"),
        ("GET", "/flowkit/messages/nobody", b"", {}, 404, "no message nobody"),
        ("GET", "/flowkit/messages/%00", b"", {}, 404, "no such message"),
    ],
)
def test_what_cannot_be_taken_is_told_as_a_problem_and_nothing_is_accepted(
    site: Site, method: str, path: str, content: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    answer = site.client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert said in problem["detail"]
    assert sum(one.accepted for one in site.store.ledger.balances().values()) == 0


def test_the_same_idempotency_key_is_accepted_once(site: Site) -> None:
    for _ in range(3):
        answer = site.client.post("/orders", json={"name": "a"}, headers={"idempotency-key": "one"})
        assert answer.status_code == 202
        assert answer.json()["id"] == "one"
    wait_until(lambda: site.client.get("/flowkit/messages/one").json()["state"] == "applied")
    assert site.effects() == {"accept a": 1}
    assert site.store.ledger.balances()["shop.accept"].accepted == 1


def test_the_same_idempotency_key_with_another_body_is_refused(site: Site) -> None:
    key = {"idempotency-key": "one"}
    assert site.client.post("/orders", json={"name": "a"}, headers=key).status_code == 202
    answer = site.client.post("/orders", json={"name": "b"}, headers=key)
    assert answer.status_code == 422
    assert "accepted before with another path, query or content" in answer.json()["detail"]
    assert site.client.post("/orders", json={"name": "a"}, headers=key).status_code == 202
    assert site.client.post("/notes", content=b"b", headers=key).status_code == 202, "another route has other keys"
    wait_until(lambda: site.effects() == {"accept a": 1, "note b": 1})


def test_a_balancers_own_id_makes_a_second_try_harmless(site: Site) -> None:
    for name in ("flowkit-request-id", "flowkit-request-id", "idempotency-key"):
        answer = site.client.post("/orders", json={"name": "a"}, headers={name: "one"})
        assert (answer.status_code, answer.json()["id"]) == (202, "one")
    wait_until(lambda: site.effects() == {"accept a": 1})


def test_a_flow_answers_its_request(site: Site) -> None:
    for _ in range(2):
        answer = site.client.post("/quotes", json={"name": "a"}, headers={"idempotency-key": "one"})
        assert (answer.status_code, answer.json()) == (200, {"for": "a"})
    status = site.client.get(answer.headers["content-location"]).json()
    assert (status["state"], status["reply"]) == ("applied", {"for": "a"})
    assert site.effects() == {"quote a": 1}


def test_a_reply_that_comes_late_is_told_by_the_status(site: Site) -> None:
    answer = site.client.get("/quotes/21?slow=yes")
    assert answer.status_code == 202
    status = answer.json()["status"]
    wait_until(lambda: site.client.get(status).json()["state"] == "applied")
    assert site.client.get(status).json()["reply"] == 42


def test_many_wait_for_their_replies_at_once(site: Site) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda one: site.client.post("/quotes", json={"name": str(one)}), range(100)))
    assert [one.json() for one in answers] == [{"for": str(one)} for one in range(100)]


def test_more_requests_than_a_route_takes_are_told_to_come_again(site: Site) -> None:
    answers = [site.client.post("/few", json={"name": "a"}) for _ in range(20)]
    assert [one.status_code for one in answers[:2]] == [202, 202]
    refused = next(one for one in answers if one.status_code == 429)
    assert int(refused.headers["retry-after"]) == 1
    assert "more than 2 requests a second" in refused.json()["detail"]
    time.sleep(1)  # the time that the answer named
    assert site.client.post("/few", json={"name": "a"}).status_code == 202


def test_readiness_tells_what_it_was_decided_by(site: Site) -> None:
    assert site.client.get("/livez").status_code == site.client.get("/readyz").status_code == 200
    told = site.admin.get("/readyz?verbose").json()
    assert told["store"].startswith("answered in ")
    assert told["transport"] == "takes messages"
    site.server.leave(60, 60)
    told = site.admin.get("/readyz?verbose").json()
    assert (told["status"], told["detail"]) == (503, "this instance is about to end")


def test_the_routes_are_described(site: Site) -> None:
    document = site.admin.get("/flowkit/openapi.json").json()
    validate(document)
    order = document["paths"]["/orders"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert order["properties"]["name"] == {"title": "Name", "type": "string"}
    change = document["paths"]["/customers/{customer}/orders/{number}"]["put"]
    places = {one["name"]: (one["in"], one["required"]) for one in change["parameters"]}
    assert places == {
        "Idempotency-Key": ("header", False),
        "customer": ("path", True),
        "number": ("path", True),
        "tags": ("query", False),
        "urgent": ("query", False),
    }
    assert document["paths"]["/quotes"]["post"]["summary"] == "What an order costs."


def test_metrics_are_those_of_the_fleet(site: Site) -> None:
    for name in ("a", "b"):
        assert site.client.post("/orders", json={"name": name}).status_code == 202
    wait_until(lambda: len(site.effects()) == 2)
    answer = site.admin.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'flowkit_messages_total{flow="shop.accept",outcome="applied"} 2.0' in lines
    assert 'flowkit_workers{app="shop",group="",state="ready",version=""} 1.0' in lines
    assert "# TYPE flowkit_messages_total counter" in lines


def test_scale_says_how_much_there_is_to_do(site: Site) -> None:
    assert site.admin.get("/scale").json() == {"pending": 0}
    site.store.directions.set("paused", ["shop"], 1)
    wait_until(lambda: ("paused", "shop") in site.worker.directions.current)
    for name in ("a", "b"):
        site.client.post("/orders", json={"name": name})
    wait_until(lambda: site.admin.get("/scale").json() == {"pending": 2})  # an answer is kept for a second
    site.store.directions.set("paused", ["shop"], None)
    wait_until(lambda: site.admin.get("/scale").json() == {"pending": 0})


@pytest.mark.parametrize("name", ["shop.accept", "shop"])
def test_what_is_drained_takes_nothing_and_finishes_what_it_has(site: Site, name: str) -> None:
    assert site.client.post("/orders", json={"name": "a"}).status_code == 202
    site.store.directions.set("drained", [name], 1)
    wait_until(lambda: ("drained", name) in site.worker.directions.current)
    answer = site.client.post("/orders", json={"name": "b"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "is drained" in answer.json()["detail"]
    assert site.client.get("/readyz").status_code == (503 if name == "shop" else 200)
    assert site.client.post("/notes?text=c").status_code == (503 if name == "shop" else 202)
    wait_until(lambda: "accept a" in site.effects())
    site.store.directions.set("drained", [name], None)
    wait_until(lambda: site.client.post("/orders", json={"name": "d"}).status_code == 202)
    assert "accept b" not in site.effects()


def test_once_drained_nothing_comes_any_more_and_all_that_came_is_at_its_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", site.services.settings.database_url)
    over = threading.Event()
    accepted: list[str] = []

    def send() -> None:
        while not over.wait(0.005):
            answer = site.client.post("/orders", json={"name": str(len(accepted))})
            if answer.status_code == 202:
                accepted.append(answer.json()["id"])

    client = threading.Thread(target=send)
    client.start()
    try:
        wait_until(lambda: len(accepted) > 10)
        assert direct.drain(["shop"], "20s") == 0
        before = len(accepted)
        wait_until(lambda: site.client.post("/notes?text=c").status_code == 503)
        assert site.store.ledger.unfinished(["shop.accept"]) == 0
    finally:
        over.set()
        client.join(SECONDS)
    assert len(accepted) == before == len(site.effects())
    direct.resume(["shop"])
    assert site.client.post("/orders", json={"name": "later"}).status_code == 202


def test_a_request_whose_content_comes_after_the_drain_is_refused(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=SECONDS) as slow:
        head = b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
        slow.sendall(head + b'{"name"')
        site.store.directions.set("drained", ["shop"], 1)
        wait_until(lambda: ("drained", "shop") in site.worker.directions.current)
        slow.sendall(b': "a"}')
        assert slow.recv(12) == b"HTTP/1.1 503"
    assert site.store.ledger.unfinished(["shop.accept"]) == 0


def test_a_direction_is_in_force_when_its_command_returns_and_an_app_is_resumed_with_its_flows(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", site.services.settings.database_url)
    direct.pause(["shop.accept"])
    for _ in range(5):
        assert site.client.post("/orders", json={"name": "a"}).status_code == 202
    assert site.client.post("/quotes", json={"name": "q"}).status_code == 200
    assert site.effects() == {"quote q": 1}
    direct.resume(["shop"])
    assert site.store.directions.read() == {}
    wait_until(lambda: site.effects() == {"quote q": 1, "accept a": 5})


def test_requests_that_come_together_share_transactions(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    began, commits = threading.Event(), []
    commit = SqlUnit.commit

    def counted(unit: SqlUnit) -> None:
        if unit._lane.startswith("publish"):
            commits.append(1)
            began.wait(SECONDS)
        commit(unit)

    monkeypatch.setattr(SqlUnit, "commit", counted)
    with ThreadPoolExecutor(100) as pool:
        answers = [pool.submit(site.client.post, "/orders", json={"name": str(one)}) for one in range(100)]
        queue = site.server._ingress._commits
        wait_until(lambda: len(queue._waiting) + len(commits) > 90)
        began.set()
        assert {one.result().status_code for one in answers} == {202}
    assert len(commits) < 10
    wait_until(lambda: len(site.effects()) == 100)


def test_a_client_that_sends_too_much_or_too_slowly_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_connection(("127.0.0.1", site.port), SECONDS) as endless:
        endless.sendall(b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        endless.sendall(b"transfer-encoding: chunked\r\n\r\n")
        sent = 0
        with suppress(ConnectionError):
            while sent < 10 * MAX_BODY:
                endless.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        assert MAX_CONTENT <= sent < MAX_BODY, "it is not read to its end"
    assert site.client.post("/orders", content=b"x" * (MAX_CONTENT + 1), headers=JSON).status_code == 413
    monkeypatch.setattr(content, "CONTENT_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", site.port), SECONDS) as slow:
        slow.sendall(JSON_HEAD + b"{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
    with socket.create_connection(("127.0.0.1", site.port), SECONDS) as gone:
        gone.sendall(JSON_HEAD + b'{"name": "a"}')
    assert site.client.post("/orders", json={"name": "b"}).status_code == 202
    wait_until(lambda: site.effects() == {"accept b": 1})


@pytest.mark.parametrize(
    ("define", "said"),
    [
        (lambda app: app.flow(web.post("orders"))(lambda order: None), 'a path begins with "/"'),
        (lambda app: app.flow(web.post("/a{b}"))(lambda b: None), "text or one parameter"),
        (lambda app: app.flow(web.get("/readyz"))(lambda: None), "answered by FlowKit"),
        (lambda app: app.flow(web.get("/{a}/{a}"))(lambda a: None), "named twice"),
        (lambda app: app.flow(web.get("/{a}"), name="one")(lambda b: None), "no parameter of that name"),
        (lambda app: app.flow(web.get("/a", reply=True), to="b", name="one")(lambda: None), "it has no to="),
        (lambda app: app.flow(web.get("/a", rate=0), name="one")(lambda: None), "takes no requests"),
        (lambda app: app.flow(web.get("/a", reply="soon"), name="one")(lambda: None), "reply"),
    ],
)
def test_a_route_that_is_wrong_is_told_when_it_is_defined(define: Callable[[App], object], said: str) -> None:
    app = App("shop")
    with pytest.raises(DefinitionError, match=said.replace("{", r"\{")):
        define(app)
        app.check()


def test_a_key_of_two_routes_is_at_its_end_when_both_are(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", site.services.settings.database_url)
    key = {"idempotency-key": "one"}
    status = site.client.post("/orders", json={"name": "a"}, headers=key).json()["status"]
    wait_until(lambda: site.client.get(status).json()["state"] == "applied")
    direct.pause(["shop.note"])
    assert site.admin.get("/readyz?verbose").json()["service"] == "shop.note is paused"
    site.client.post("/notes?text=n", headers=key)
    told = site.client.get(status).json()
    assert (told["state"], told["flows"]) == ("accepted", {"shop.accept": "applied", "shop.note": "accepted"})
    direct.resume(["shop"])
    wait_until(lambda: site.client.get(status).json()["state"] == "applied")


def test_a_status_is_found_whatever_its_key_looks_like(site: Site) -> None:
    answer = site.client.post("/orders", json={"name": "a"}, headers={"idempotency-key": "a/b?c=%2F#d"})
    status = answer.json()["status"]
    wait_until(lambda: site.client.get(status).json().get("state") == "applied")


def test_one_key_at_two_routes_gets_the_reply_of_each(site: Site) -> None:
    key = {"idempotency-key": "one"}
    assert site.client.post("/quotes", json={"name": "a"}, headers=key).json() == {"for": "a"}
    status = site.client.get("/quotes/3?slow=true", headers=key)
    assert status.status_code == 202, "the other route's reply is none of its own"


def test_nobody_is_refused_for_a_key_that_somebody_else_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(self: Publisher, messages: Sequence[Outgoing], optional: object) -> set[str]:
        raise Reused("a key") if len(messages) > 1 else StoreUnavailable("it is away")

    monkeypatch.setattr(Publisher, "_accept", answer)
    context, route = site.worker.app.context(site.services), site.worker.app.flows["shop.note"].source
    assert isinstance(route, Route)
    waiting: list[Waiting] = [([compose(context, route(b"{}"), "shop", encoded=True)], Future()) for _ in range(3)]
    Publisher(site.services.store, context).commit(waiting)
    assert all(isinstance(future.exception(), StoreUnavailable) for _, future in waiting)
