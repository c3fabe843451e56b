"""The commands that send, count and audit messages."""

import json
import re
import sys

import pytest

from tests.support.command_line import Terminal

# ---------------------------------------------------------------- send


def test_send_one(flowkit: Terminal) -> None:
    result = flowkit("send", "shop.py", "orders.received", '{"id": 1}', "--id", "one", "--key", "k", "--delay", "1h")
    assert result == (0, "one\n", "")
    again = flowkit("send", "shop.py", "orders.received", '{"id": 1}', "--id", "one")
    assert again.code == 0
    assert flowkit.sql("SELECT id, key FROM flowkit_messages") == [("one", "k")]
    assert flowkit("status", "--json").json["flows"]["shop.accept"]["backlog"]["delayed"] == 1


@pytest.mark.parametrize(
    ("stdin", "out"),
    [
        (b'{"id": 1}\n{"id": 2}\n\n{"id": 3}', "3\n"),
        (b'{\n  "id": 1,\n  "deed": "x"\n}\n', None),
        (b'{"id": 1}\n', None),
        (b"", "0\n"),
    ],
)
def test_send_from_standard_input(flowkit: Terminal, stdin: bytes, out: str | None) -> None:
    result = flowkit("send", "shop.py", "orders.received", "-", stdin=stdin)
    assert result.code == 0
    if out is None:
        out = f"{flowkit.sql('SELECT id FROM flowkit_messages')[0][0]}\n"
    assert result.out == out


def test_send_text_as_it_is(flowkit: Terminal) -> None:
    assert flowkit("send", "shop.py", "notes", stdin=b"one {\r\ntwo\n").out == "2\n"
    assert flowkit.sql("SELECT CAST(body AS text) FROM flowkit_messages ORDER BY 1") == [("one {",), ("two",)]


def test_send_a_file_with_a_wrong_line(flowkit: Terminal) -> None:
    lines = [json.dumps({"id": number}) for number in range(1200)]
    lines[1100] = '{"id": "many"}'
    (flowkit.folder / "orders.jsonl").write_text("\n".join(lines))
    result = flowkit("send", "shop.py", "orders.received", "@orders.jsonl")
    assert (result.code, result.out) == (1, "")
    assert "lines 1 to 1000 were sent" in result.err
    assert "line 1101: not a message for channel orders.received: id: " in result.err
    assert flowkit.sql("SELECT count(*) FROM flowkit_messages") == [(1000,)]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (["orders.received", "{"], b"", 1, "not a message for channel orders.received: the body: Invalid JSON"),
        (["orders.received", '{"id": "x"}'], b"", 1, "id: Input should be a valid integer"),
        (["orders.received", "-"], b'{"id": 1}\n{"i', 1, "line 2: not a message"),
        (
            ["orders.received", "-", "--id", "x"],
            b'{"id": 1}\n{"id": 2}\n',
            1,
            "--key, --id and --delay are for one message",
        ),
        (["orders.received", "@none.jsonl"], b"", 1, "there is no file none.jsonl"),
        (["orders", "{}"], b"", 2, "no channel orders; its channels are notes, orders.accepted, orders.received"),
        (["notes", "x", "--delay", "later"], b"", 2, "delay is 'later'"),
        (["notes", "x", "--delay", "30d"], b"", 2, "exceeds App(max_delay='3d')"),
    ],
)
def test_send_tells_what_is_wrong(
    flowkit: Terminal, arguments: list[str], stdin: bytes, code: int, message: str
) -> None:
    result = flowkit("send", "shop.py", *arguments, stdin=stdin)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "Traceback" not in result.err


# ---------------------------------------------------------------- status and audit


def test_status(flowkit: Terminal) -> None:
    flowkit("send", "shop.py", "notes", "x")
    flowkit("send", "shop.py", "notes", "x", "--delay", "1h")
    found = flowkit("status", "--json").json
    assert found["workers"] == []
    note = found["flows"]["shop.note"]
    assert (note["channel"], note["accepted"], note["pending"], note["dead"]) == ("notes", 2, 2, 0)
    assert (note["backlog"]["due"], note["backlog"]["delayed"]) == (1, 1)
    assert note["backlog"]["oldest"] >= 0
    result = flowkit("status")
    assert result.code == 0
    assert re.search(r"^shop\.note +notes +0 +0 +0 +1 +0 +1 ", result.out, re.MULTILINE)


def test_audit(flowkit: Terminal) -> None:
    letters = flowkit.dead(4)
    flowkit("dead", "discard", letters[0])
    result = flowkit("audit", "--json")
    assert result.code == 0
    assert result.json["flows"]["shop.done"] == {
        "balanced": True, "accepted": 4, "applied": 0, "dead": 3, "discarded": 1, "expired": 0, "pending": 0,
    }  # fmt: skip
    names = ("accepted", "applied", "dead", "discarded", "expired", "pending")
    assert {name: result.json[name] for name in names} == dict(zip(names, (8, 4, 3, 1, 0, 0), strict=True))
    assert result.json["balanced"] is True
    assert flowkit("audit").out.endswith("\nbalanced\n")


def test_audit_finds_what_is_lost_and_what_is_counted_twice(flowkit: Terminal) -> None:
    flowkit.dead(4)
    flowkit.sql("UPDATE flowkit_counters SET accepted = accepted + 1 WHERE flow = 'shop.done' AND accepted > 0")
    result = flowkit("audit", "--json")
    assert (result.code, result.json["balanced"], result.json["flows"]["shop.done"]["balanced"]) == (1, False, False)
    assert result.json["flows"]["shop.accept"]["balanced"] is True
    result = flowkit("audit")
    assert result.code == 1
    assert "shop.done: 5 were accepted, and 4 are accounted for" in result.out
    assert "NOT balanced" in result.out
    # One flow too many and another too few: the sums agree, the flows do not.
    flowkit.sql("UPDATE flowkit_counters SET accepted = accepted - 1 WHERE flow = 'shop.accept' AND accepted > 0")
    assert flowkit("audit").code == 1


def test_audit_finds_a_dead_letter_that_is_gone(flowkit: Terminal) -> None:
    letters = flowkit.dead(2)
    flowkit.sql(f"DELETE FROM flowkit_dead WHERE letter = '{letters[0]}'")
    result = flowkit("audit")
    assert (result.code, "2 are counted dead, and there are 1 dead letters" in result.out) == (1, True)


def test_nothing_but_json_and_no_colours_when_piped(flowkit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    (letter, *_) = flowkit.dead(2)
    commands = [["status"], ["audit"], ["describe", "shop.py"], ["dead", "list"], ["dead", "list", "--group"]]
    for command in [*commands, ["dead", "show", letter, "--body"]]:
        result = flowkit(*command)
        assert (result.code, result.err) == (0, ""), command
        assert "\x1b" not in result.out, command
        result = flowkit(*command, "--json")
        assert (result.code, result.err) == (0, ""), command
        assert isinstance(result.json, dict | list)
        assert "\x1b" not in result.out, command


def test_a_terminal_gets_styles_and_with_no_color_no_colours(
    flowkit: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowkit.cli.show import table

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    table("Title", ["a"], [(1,)])
    assert "\x1b[1m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    table("Title", ["a"], [(1,)])
    assert re.search(r"\x1b\[[0-9;]*[349]\d", capsys.readouterr().out) is None


def test_what_a_channel_refuses_is_told_by_send(flowkit: Terminal) -> None:
    """It can be read, and would not come out as it went in."""
    source = (flowkit.folder / "shop.py").read_text()
    (flowkit.folder / "shop.py").write_text(
        source.replace("    deed: str = ", "    total: float = 0\n    deed: str = ")
    )
    why = (
        "not a message for channel orders.received: this Order would not come out as it went in: total: Input should "
        "be a valid number (null may stand for NaN"
    )
    result = flowkit("send", "shop.py", "orders.received", '{"id": 1, "total": NaN}')
    assert (result.code, result.out, result.err.startswith(f"flowkit: {why}")) == (1, "", True), result.err
    lines = flowkit("send", "shop.py", "orders.received", stdin=b'{"id": 1}\n{"id": 2, "total": NaN}\n')
    assert lines.code == 1
    assert lines.err.startswith(f"flowkit: nothing was sent\nflowkit: line 2: {why}"), lines.err
