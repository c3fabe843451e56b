"""The commands for dead letters."""

import io
import json
from collections.abc import Callable
from contextlib import closing

import pytest

from flowkit.services import open_store
from flowkit.settings import Settings
from tests.support.command_line import Terminal

# ---------------------------------------------------------------- dead letters


def test_dead_list_and_show(flowkit: Terminal) -> None:
    letters = flowkit.dead(5)
    assert len(letters) == 5
    result = flowkit("dead", "list", "--limit", "2")
    lines = [line for line in result.out.splitlines() if "shop.done" in line]
    assert len(lines) == 2, "a letter is a line"
    assert letters[0] in lines[0]
    assert "\\x1b[31m\\nred" in lines[0]
    assert len(flowkit("dead", "list", "--json", "--error", "no 0").json) == 3
    assert flowkit("dead", "list", "--json", "--flow", "shop.accept").json == []
    groups = flowkit("dead", "list", "--group", "--json").json
    assert [(one["flow"], one["count"]) for one in groups] == [("shop.done", 3), ("shop.done", 2)]
    hidden = flowkit("dead", "show", letters[0])
    assert "(hidden; see --body)" in hidden.out
    assert '"reject"' not in hidden.out
    assert "\x1b" not in hidden.out
    shown = flowkit("dead", "show", letters[0], "--body", "--json").json
    assert json.loads(shown["body"]) == {"id": 0, "deed": "reject"}
    assert shown["flow"] == "shop.done"


def test_many_dead_letters_are_listed_by_pages_without_their_bodies(
    flowkit: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowkit.operations.dead_letters.BATCH", 2)
    letters = flowkit.dead(5)
    told = "the oldest 4 are shown, and there are more: --limit shows them, --group counts\n"
    result = flowkit("dead", "list", "--limit", "4")
    lines = result.out.splitlines()
    assert lines[0].strip() == "Dead letters"
    assert lines[1].split() == ["letter", "flow", "message", "attempts", "died", "reason", "error"]
    assert [line.split()[0] for line in lines[2:]] == letters[:4]
    assert result.err == told
    listed = flowkit("dead", "list", "--limit", "4", "--json")
    assert [one["letter"] for one in listed.json] == letters[:4]
    assert listed.err == told
    assert flowkit("dead", "list", "--limit", "5").err == ""
    with closing(open_store(Settings.read())) as store:
        for one in store.dead_letters.read(letters, whole=False):
            assert (one.message.body, one.stack) == (b"", "")
            (whole,) = store.dead_letters.read([one.letter])
            assert whole._replace(message=whole.message._replace(body=b""), stack="") == one


def test_a_body_that_is_no_text_is_shown(flowkit: Terminal) -> None:
    (letter,) = flowkit.dead(1)
    flowkit.sql("UPDATE flowkit_dead SET body = x'ff1b5b41'")
    result = flowkit("dead", "show", letter, "--body")
    assert "body: \\xff\\x1b[A" in result.out
    assert flowkit("dead", "show", letter, "--body", "--json").json["body"] == "\\xff\x1b[A"


def test_dead_letters_are_sent_again_or_discarded(flowkit: Terminal) -> None:
    letters = flowkit.dead(6)
    assert flowkit("dead", "retry", letters[0], letters[0], letters[1]).out == "2 of 2 dead letters: sent again\n"
    assert flowkit("dead", "discard", "--error", "no 0").out == "2 of 2 dead letters: discarded\n"
    assert flowkit("dead", "discard", "--flow", "shop.done", "--yes").code == 0
    flowkit.drain()
    left = flowkit("dead", "list", "--json").json
    assert {one["message"] for one in left}.isdisjoint(letters)
    assert len(left) == 2, "what was sent again was rejected again"
    assert flowkit("dead", "retry", "--all").out == "2 of 2 dead letters: sent again\n"
    assert flowkit("audit").code == 0


def test_a_terminal_is_asked(flowkit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    flowkit.dead(2)
    asked: list[str] = []

    def answer(text: str) -> Callable[[str], str]:
        def ask(prompt: str) -> str:
            asked.append(prompt)
            return text

        return ask

    class Tty(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(io, "TextIOWrapper", Tty)
    monkeypatch.setattr("builtins.input", answer("n"))
    result = flowkit("dead", "discard", "--all")
    assert (result.code, "nothing was done" in result.err) == (1, True)
    assert asked == ["discard 2 dead letters? [y/N] "]
    assert flowkit("dead", "discard", "--all", "--yes").code == 0
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "nobody"], 1, "there is no dead letter nobody; see flowkit dead list"),
        (["retry", "nobody"], 1, "1 of the letters named are not there"),
        (["discard", "--all"], 1, "there are no such dead letters"),
        (["retry", "--flow", "x"], 1, "there are no such dead letters"),
        (["retry"], 2, "name what to retry"),
        (["discard", "x", "--all"], 2, "name what to discard"),
        (["discard", "x", "--flow", "y"], 2, "name what to discard"),
    ],
)
def test_dead_letters_that_are_not_there(flowkit: Terminal, arguments: list[str], code: int, message: str) -> None:
    flowkit("db", "upgrade")
    result = flowkit("dead", *arguments)
    assert result.code == code
    assert message in result.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["dead", "list", "--flow", "shop.acept"], 1),
        (["dead", "list", "--group", "--flow", "shop.acept"], 1),
        (["dead", "retry", "--flow", "accept"], 1),
        (["dead", "discard", "--flow", "shop.acept"], 1),
        (["pause", "accept"], 2),
        (["scale", "shop.acept", "2"], 2),
        (["subscriptions", "remove", "accept"], 2),
    ],
)
def test_a_flow_that_is_misspelt_is_told_with_the_one_that_is_meant(
    flowkit: Terminal, arguments: list[str], code: int
) -> None:
    """An empty list of dead letters would say that all is well."""
    flowkit("send", "shop.py", "orders.received", '{"id": 1}')
    result = flowkit(*arguments)
    assert (result.code, result.out) == (code, "")
    assert f"no flow {'or app ' * (arguments[0] in ('pause', 'scale'))}" in result.err
    assert "is in this store (is shop.accept meant?)" in result.err
    assert flowkit("dead", "list", "--flow", "shop.accept").code == 0
