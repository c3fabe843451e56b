"""What strangers learn and cost by HTTP: no other host, no handler that runs unasked, nobody else's share."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowkit import App, StoreUnavailable, web
from flowkit.web import rate_limiter
from flowkit.web.rate_limiter import RateLimiter
from tests.support.web_site import JSON, Site

ran: list[str] = []


def shop() -> App:
    app = App("shop")

    @app.flow(web.get("/totals", reply=True))
    def total() -> int:
        ran.append("total")
        return 1

    @app.flow(web.post("/orders"))
    def accept(order: dict[str, str]) -> None: ...

    @app.flow(web.post("/few", rate=2))
    def few(order: dict[str, str]) -> None: ...

    return app


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    ran.clear()
    made = Site(f"sqlite:///{tmp_path}/flowkit.db", shop())
    yield made
    made.close()


def test_nobody_is_sent_to_the_host_that_a_request_names(site: Site) -> None:
    for path in ("/orders/", "/livez/", "/totals/"):
        answer = site.client.get(path, headers={"host": "evil.example"})
        assert answer.status_code == 404
        assert "location" not in answer.headers


def test_a_head_runs_no_handler(site: Site) -> None:
    answer = site.client.head("/totals")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert site.client.head("/livez").status_code == 200
    assert site.client.get("/totals").json() == 1
    assert ran == ["total"]


@pytest.mark.parametrize("headers", [{}, {"content-type": ""}, {"content-type": "text/plain"}])
def test_content_is_json_only_if_it_says_so(site: Site, headers: dict[str, str]) -> None:
    answer = site.client.post("/orders", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert site.client.post("/orders", content=b"{}", headers=JSON).status_code == 202


@pytest.mark.parametrize("path", ["status", "/metrics", "/scale", "/readyz?verbose"])
def test_errors_of_services_are_for_the_log(
    site: Site, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*arguments: object) -> None:
        raise StoreUnavailable("connection to server at db.internal, port 5432 failed")

    status = site.client.post("/orders", content=b"{}", headers=JSON).json()["status"]
    store = site.store
    for owner, name in (
        (store.answers, "states"),
        (store.ledger, "pending"),
        (store, "now"),
        (store.directions, "read"),
    ):
        monkeypatch.setattr(owner, name, away)
    with caplog.at_level(logging.WARNING, "flowkit.http"):
        answer = site.client.get(status) if path == "status" else site.admin.get(path)
    assert "the store cannot be reached now" in answer.text
    assert "db.internal" not in answer.text
    assert "db.internal" in caplog.text


def test_what_one_client_sends_costs_no_other_one_its_rate(site: Site) -> None:
    def send(client: str, content: bytes = b"{}") -> int:
        # The peer is this machine, whose X-Forwarded-For is trusted.
        return site.client.post("/few", content=content, headers={**JSON, "x-forwarded-for": client}).status_code

    assert 429 in [send("192.0.2.1", b"no JSON") for _ in range(20)]
    assert send("192.0.2.2") == 202
    assert 429 in [send(f"2001:db8::{one:x}") for one in range(20)], "a network of IPv6 is one client"
    assert send("2001:db8:0:1::1") == 202


def test_clients_that_came_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limiter, "MOST", 10)
    limiter = RateLimiter(1)
    for one in range(1000):
        assert not limiter.take(str(one))
    assert len(limiter._buckets) == 10
    assert limiter.take("999")
    assert not limiter.take("0")
