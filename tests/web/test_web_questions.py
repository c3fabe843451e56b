"""Questions that everybody may ask cost no other request its answer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from flowkit import App, StoreUnavailable, web
from flowkit.store.ledger import Backlog, Ledger
from flowkit.web import question
from tests.support.waiting import wait_until
from tests.support.web_site import JSON, SECONDS, Site

MANY = 40


def shop() -> App:
    app = App("shop")

    @app.flow(web.post("/quotes", reply="5s"))
    def quote(order: dict[str, str]) -> int:
        return 1

    return app


class Slow:
    """A query that takes as long as the test likes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.over = threading.Event()
        answer = Ledger.backlog

        def slow(ledger: Ledger) -> dict[str, Backlog]:
            self.asked.append(threading.current_thread().name)
            assert self.over.wait(SECONDS)
            return answer(ledger)

        patch.setattr(Ledger, "backlog", slow)


@pytest.mark.parametrize("path", ["/metrics", "/scale"])
def test_a_question_is_asked_once_for_all_who_wait(site: Site, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    with ExitStack() as opened:
        pool = opened.enter_context(ThreadPoolExecutor(MANY))
        opened.callback(slow.over.set)
        asking = [pool.submit(site.admin.get, path) for _ in range(MANY)]
        wait_until(lambda: bool(slow.asked))
        for _ in range(3):
            answer = site.client.post("/quotes", content=b"{}", headers=JSON)
            assert (answer.status_code, answer.json()) == (200, 1), "a reply does not wait for the question"
        assert site.admin.get("/readyz?verbose").status_code == 200
        slow.over.set()
        assert {one.result().status_code for one in asking} == {200}
    assert len(slow.asked) < MANY / 10
    monkeypatch.setattr(question, "KEEP_SECONDS", 0.0)
    before = len(slow.asked)
    assert site.admin.get(path).status_code == 200
    assert len(slow.asked) == before + 1, "an answer is not kept for longer"


def test_checks_are_made_once_for_all_who_ask(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def away() -> float:
        asked.append(1)
        raise StoreUnavailable("it is away")

    monkeypatch.setattr(site.store, "now", away)
    monkeypatch.setattr(question, "KEEP_SECONDS", SECONDS)
    told = {site.admin.get("/readyz?verbose").json()["store"] for _ in range(10)}
    assert len(told) == len(asked) == 1, "what cannot be answered is kept too"
