"""Attacks with other clients' idempotency keys, across routes, principals and instances."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from uuid import uuid4

from benchmarks.attack.app import Base
from benchmarks.attack.client import Answer, ask
from benchmarks.attack.verdict import Verdict
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.sla.testbed import Node, wait_until

APP = "benchmarks.attack.app:app"
ALICE, MALLORY = {"authorization": "Bearer alice"}, {"authorization": "Bearer mallory"}
MINE, THEIRS = {"name": "mine"}, {"name": "theirs"}
MOST_CHARACTERS = 255
SECRET = "theirs"


class Ports(NamedTuple):
    """Where two instances of one store answer."""

    one: int
    two: int


@contextmanager
def instances(count: int = 2, **environment: str) -> Iterator[list[Node]]:
    """Instances of the app on one SQLite database."""
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="flowkit-attack-"))
        url = f"sqlite:///{folder}/flowkit.db"
        store: Any = open_store(Settings(database_url=url), check=False)
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        settings = {"FLOWKIT_DATABASE_URL": url, "FLOWKIT_BROKER_URL": "", **environment}
        nodes = [Node(APP, (), settings) for _ in range(count)]
        for node in nodes:
            opened.callback(node.kill)
            node.start()
        wait_until(lambda: all(node.ready for node in nodes), "the instances are not ready")
        yield nodes


def post(port: int, path: str, content: object, key: str, who: Mapping[str, str] | None = None) -> Answer:
    return ask(port, "POST", path, content, {"idempotency-key": key, **(who or {})})


def _told(attack: str, tried: str, answers: Mapping[str, Answer], held: bool) -> Verdict:
    seen = ", ".join(f"{what}: {one.status}" for what, one in answers.items())
    leaks = [what for what, one in answers.items() if SECRET in one.text]
    return Verdict(attack, tried, f"{seen}; told of the other's: {', '.join(leaks) or 'nothing'}", held and not leaks)


def across_routes(ports: Ports) -> Verdict:
    """Two routes and keys that read the same once they are put together."""
    post(ports.one, "/orders/confirm", THEIRS, "confirm7")
    answers = {
        "/ord ers/confirm7": post(ports.one, "/ord", MINE, "ers/confirm7"),
        "/ord confirm7": post(ports.two, "/ord", MINE, "confirm7"),
    }
    again = post(ports.two, "/orders/confirm", THEIRS, "confirm7")
    own = all(one.text == '"short mine"' for one in answers.values()) and again.text == '"confirm theirs"'
    return _told("a key of another route", "POST /ord with keys made of /orders/confirm's", answers, own)


def across_principals(ports: Ports) -> Verdict:
    """The key of another principal: sent before it, after it, and asked for at both instances."""
    first = str(uuid4())
    early = post(ports.two, "/accounts", MINE, first, MALLORY)
    theirs = post(ports.one, "/accounts", THEIRS, first, ALICE)
    status = theirs.headers.get("content-location", "")
    answers = {
        "the same key": early,
        "the same key and content": post(ports.two, "/accounts", MINE, first, MALLORY),
        "its status": ask(ports.one, "GET", status, None, MALLORY),
        "its status at the other instance": ask(ports.two, "GET", status, None, MALLORY),
        "its status as nobody": ask(ports.two, "GET", status, None, {}),
        "no credentials": post(ports.one, "/accounts", MINE, first),
    }
    held = theirs.text == '"shop/alice: theirs"' and early.text == '"shop/mallory: mine"'
    held = held and answers["its status as nobody"].status == answers["no credentials"].status == 401
    return _told(
        "a key of another principal", "sent before and after it, and asked for at two instances", answers, held
    )


def across_instances(ports: Ports) -> Verdict:
    """A status of a route without principals, asked for without its token, and with that of another request."""
    theirs = post(ports.one, "/orders/confirm", THEIRS, str(uuid4())).headers.get("content-location", "")
    mine = post(ports.one, "/orders/confirm", MINE, str(uuid4())).headers.get("content-location", "")
    place, _, _ = theirs.partition("?")
    _, _, token = mine.partition("?")
    answers = {
        "without a token": ask(ports.two, "GET", place, None, {}),
        "with a token of another request": ask(ports.two, "GET", f"{place}?{token}", None, {}),
        "as another method": ask(ports.two, "DELETE", theirs, None, {}),
    }
    told = ask(ports.two, "GET", theirs, None, {})
    held = told.status == 200 and SECRET in told.text and all(one.status >= 400 for one in answers.values())
    return _told("a status of somebody else", "its URL without a token, or with another one", answers, held)


def without_principals(ports: Ports) -> Verdict:
    """A key that is guessed on a route without principals, with other content than its owner's."""
    key = "order-1"
    post(ports.one, "/orders/confirm", THEIRS, key)
    answers = {"other content": post(ports.two, "/orders/confirm", MINE, key)}
    held = answers["other content"].status == 422
    return _told("a guessed key", "other content under it, at another instance", answers, held)


def malformed(ports: Ports) -> Verdict:
    """Keys that are too long, empty, or hold what a header may not."""
    keys = {"long": "k" * (MOST_CHARACTERS + 1), "with a tab": "a\tb", "not ASCII": "ü"}
    answers = {what: post(ports.one, "/orders/confirm", MINE, key) for what, key in keys.items()}
    longest = post(ports.one, "/orders/confirm", MINE, "k" * MOST_CHARACTERS)
    held = all(one.status == 400 for one in answers.values()) and longest.status == 200
    return _told("a malformed key", "256 characters, a tab, a letter beyond ASCII; 255 are taken", answers, held)


def attacks() -> Iterator[Verdict]:
    """Attack two instances of one store."""
    with instances() as (one, two):
        ports = Ports(one.port, two.port)
        for attack in (across_routes, across_principals, across_instances, without_principals, malformed):
            yield attack(ports)
