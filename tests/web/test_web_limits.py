"""What strangers send by HTTP is bounded: an instance answers others meanwhile, and its memory does not grow."""

import asyncio
import os
import signal
import socket
import time
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AfterValidator, BaseModel
from pydantic_core import to_json

from flowkit import App, DefinitionError, web
from flowkit.message import MAX_BODY
from flowkit.web import content, reader
from flowkit.web.route import MAX_CONTENT
from tests.support.waiting import wait_until
from tests.support.web_site import JSON, SECONDS, Site

LARGE = "x" * content.FREE


def read(note: "Note") -> "Note":
    """Stands for a content that takes long to read: it tells where that happens, and how long it may last."""
    work = Path(note.work)
    if note.work:
        with (work / "log").open("a") as log:
            log.write(f"begin {os.getpid()}\n")
        while (work / "wait").exists():
            time.sleep(0.005)
        with (work / "log").open("a") as log:
            log.write(f"end {os.getpid()}\n")
    if note.name.startswith("bad"):
        raise ValueError(f"read by {os.getpid()}")
    return note


class Fields(BaseModel):
    name: str
    work: str = ""
    filler: str = ""


class Note(Fields): ...


Read = Annotated[Note, AfterValidator(read)]


def shop() -> App:
    app = App("shop")

    @app.flow(web.post("/notes"))
    def note(note: Read) -> None: ...

    @app.flow(web.post("/large", max_body=MAX_BODY))
    def large(note: Read) -> None: ...

    @app.flow(web.post("/named"), id_from="name")
    def named(note: Read) -> None: ...

    @app.flow(web.post("/blobs/{name}"))
    def keep(blob: bytes, name: str) -> None: ...

    return app


def note(name: str, work: Path | str = "", filler: str = LARGE) -> bytes:
    return to_json({"name": name, "work": str(work), "filler": filler})


def said(site: Site, content: bytes, path: str = "/notes") -> tuple[int, str]:
    answer = site.client.post(path, content=content, headers=JSON)
    return answer.status_code, answer.json().get("detail", "")


# ------------------------------------------------------------ content


def test_a_route_takes_a_mebibyte_and_more_where_it_says_so(site: Site) -> None:
    too_large = note("a", filler="x" * MAX_CONTENT)
    status, detail = said(site, too_large)
    assert status == 413
    assert "more than 1,048,576 bytes" in detail
    assert "max_body=" in detail
    assert said(site, too_large, "/large")[0] == 202


def test_a_length_that_is_too_large_is_refused_before_the_content_comes(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), SECONDS) as client:
        client.sendall(b"POST /notes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ")
        client.sendall(b"%d\r\n\r\n" % (MAX_CONTENT + 1))
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("most", [0, -1, MAX_BODY + 1])
def test_a_limit_that_cannot_be_is_refused(most: int) -> None:
    with pytest.raises(DefinitionError, match="max_body="):
        web.post("/notes", max_body=most)


def test_content_that_waits_for_its_rest_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "IN_FLIGHT", 4 * content.FREE)
    site = Site(f"sqlite:///{tmp_path}/flowkit.db", shop())
    with ExitStack() as opened:
        opened.callback(site.close)
        unfinished = [opened.enter_context(_begun(site.port, 3 * content.FREE)) for _ in range(2)]
        wait_until(lambda: site.server._ingress._budget.used == 4 * content.FREE)
        answer = site.client.post("/notes", content=note("a", filler=2 * LARGE), headers=JSON)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "nothing was accepted" in answer.json()["detail"]
        assert said(site, note("b", filler=""))[0] == 202, "what is small needs nothing of it"
        for one in unfinished:
            one.close()
        wait_until(lambda: not site.server._ingress._budget.used)
        assert said(site, note("c", filler=2 * LARGE))[0] == 202


def _begun(port: int, size: int) -> socket.socket:
    """A client that sends so much of a content, and no more."""
    client = socket.create_connection(("127.0.0.1", port), SECONDS)
    client.sendall(b"POST /notes HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    client.sendall(b"content-length: %d\r\n\r\n" % (size + 1) + b" " * size)
    return client


# ------------------------------------------------------------ the reader


def test_large_content_is_read_by_another_process(site: Site) -> None:
    assert str(os.getpid()) in said(site, note("bad", filler=""))[1]
    status, detail = said(site, note("bad"))
    assert status == 422
    assert "read by" in detail
    assert str(os.getpid()) not in detail
    assert said(site, b'{"name": "' + LARGE.encode())[0] == 400
    assert said(site, note("good"))[0] == 202
    assert site.client.post("/blobs/a?b=c", content=b"x" * 2 * content.FREE).status_code == 422
    assert site.client.post("/blobs/a", content=b"x" * 2 * content.FREE).status_code == 202


def test_an_id_is_found_in_large_content(site: Site) -> None:
    for _ in range(2):
        answer = site.client.post("/named", content=note("one"), headers=JSON)
        assert (answer.status_code, answer.json()["id"]) == (202, "one")
    assert site.client.post("/named", content=note(""), headers=JSON).status_code == 422


def test_large_content_that_is_the_message_does_not_come_back_from_its_reader() -> None:
    app = shop()
    with closing(reader.Reader(app.flows)) as reading:
        sent = note("one")
        found = asyncio.run(reading.read(app.flows["shop.named"], {}, (), sent))
        assert (found.key, found.body is sent) == ("one", True)
        packed = asyncio.run(reading.read(app.flows["shop.keep"], {"name": "a"}, (), b"x" * len(sent)))
        assert packed.body == to_json({"name": "a", "blob": {"base64": b64encode(b"x" * len(sent)).decode()}})


def test_others_are_answered_while_large_content_is_read_one_at_a_time(site: Site, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    log = tmp_path / "log"
    with ThreadPoolExecutor(3) as pool:
        sent = [pool.submit(said, site, note(f"bad {one}", tmp_path)) for one in range(3)]
        wait_until(lambda: _written(log))
        assert site.client.get("/livez").status_code == 200
        assert said(site, note("small", filler=""))[0] == 202
        (tmp_path / "wait").unlink()
        assert {one.result()[0] for one in sent} == {422}
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["begin", "end"] * 3


def test_a_reader_that_dies_costs_one_request(site: Site, tmp_path: Path) -> None:
    status, detail = _cut(site, tmp_path, lambda pid: os.kill(pid, signal.SIGKILL))
    assert status == 503
    assert "nothing was accepted" in detail
    assert said(site, note("next"))[0] == 202


def test_a_reader_that_does_not_start_costs_one_request(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise BlockingIOError("there are too many processes")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", full)
        assert said(site, note("a"))[0] == 503
    assert said(site, note("a"))[0] == 202


def test_content_that_takes_too_long_is_given_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "READ_SECONDS", 0.2)
    status, detail = _cut(site, tmp_path, lambda pid: None)
    assert status == 503
    assert "within 0.2 s" in detail
    monkeypatch.undo()
    assert said(site, note("next"))[0] == 202


def _cut(site: Site, work: Path, cut: Callable[[int], None]) -> tuple[int, str]:
    """What a client is told whose content is being read when the reader's process comes to its end."""
    (work / "wait").touch()
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(said, site, note("a", work))
        wait_until(lambda: _written(work / "log"))
        pid = int((work / "log").read_text().split()[1])
        cut(pid)
        told = sent.result()
    wait_until(lambda: not _runs(pid))
    (work / "wait").unlink()
    return told


def _written(log: Path) -> bool:
    return log.exists() and log.read_text().endswith("\n")


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_reader_is_replaced_after_a_while_and_ends_with_its_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(f"sqlite:///{tmp_path}/flowkit.db", shop())
    with ExitStack() as opened:
        opened.callback(site.close)
        first, second = _reader(site), _reader(site)
        assert first == second
        monkeypatch.setattr(reader, "LIFE_SECONDS", 0.0)
        assert _reader(site) == first
        wait_until(lambda: not _runs(first))
        monkeypatch.undo()
        third = _reader(site)
    wait_until(lambda: not _runs(third))


def _reader(site: Site) -> int:
    """The process that reads large content now."""
    return int(said(site, note("bad"))[1].split()[-1])
