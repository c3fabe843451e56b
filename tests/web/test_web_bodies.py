"""What a request brings is what its handler gets, or it is refused."""

import json
import socket
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from flowkit import App, RetryPolicy, web
from flowkit.web.route import RequestBinding, Route
from tests.support.waiting import wait_until
from tests.support.web_site import JSON, SECONDS, Site

got: list[Any] = []


class Line(BaseModel):
    sku: str
    price: Decimal
    weight: float = 0


def shop() -> App:
    app = App("shop")

    @app.flow(web.put("/blobs/{name}"))
    def keep(blob: bytes, name: str, tag: str = "") -> None:
        got.append((name, tag, blob))

    @app.flow(web.post("/blobs"))
    def alone(blob: bytes) -> None:
        got.append(blob)

    @app.flow(web.put("/texts/{name}"))
    def write(text: str, name: str) -> None:
        got.append((name, text))

    @app.flow(web.put("/lines/{number}"))
    def line(line: Line, number: int, rate: Decimal = Decimal(0)) -> None:
        got.append((number, rate, line))

    @app.flow(web.put("/anything/{number}"))
    def anything(value: Any, number: int) -> None:
        got.append(value)

    @app.flow(web.post("/echo", reply=True))
    def echo(value: dict[str, Any]) -> Any:
        return value

    @app.flow(web.post("/divide", reply="50ms"), retry=RetryPolicy(attempts=1))
    def divide(by: float) -> float:
        return 1.0 / by if by else float("inf")

    return app


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(f"sqlite:///{tmp_path_factory.mktemp('bodies')}/flowkit.db", shop())
    yield made
    made.close()


@pytest.fixture
def site(open_site: Site) -> Iterator[Site]:
    got.clear()
    yield open_site
    wait_until(lambda: not any(one.pending for one in open_site.store.ledger.balances().values()))


def accepted(site: Site) -> int:
    return sum(one.accepted for one in site.store.ledger.balances().values())


def taken(site: Site, method: str, path: str, content: bytes, **options: Any) -> Any:
    """What the handler got of a request."""
    answer = site.client.request(method, path, content=content, **options)
    assert answer.status_code == 202, answer.text
    wait_until(lambda: len(got) == 1 or site.client.get(answer.json()["status"]).json()["state"] == "dead")
    return got.pop()


@pytest.mark.parametrize(
    "content", [b"\xff\x00", b'"quoted"', b"plain", b"5", b"", b'{"a": 1}', b"A" * 10_000], ids=repr
)
def test_row_e21_bytes_beside_a_path_parameter_come_as_they_are(site: Site, content: bytes) -> None:
    assert taken(site, "PUT", "/blobs/a?tag=t", content) == ("a", "t", content)
    assert taken(site, "POST", "/blobs", content) == content


def test_bytes_beside_a_path_parameter_of_the_version_before_are_read() -> None:
    def keep(blob: bytes, name: str) -> None: ...

    app = App("shop")
    app.flow(web.put("/blobs/{name}"))(keep)
    binding = app.flows["shop.keep"].binding
    assert isinstance(binding, RequestBinding)
    request, body = binding.arguments, app.flows["shop.keep"].body
    assert request.unpack(body.decode(b'{"name":"a","blob":"old"}')) == {"name": "a", "blob": b"old"}


def test_row_e21_text_beside_a_path_parameter_comes_as_it_is(site: Site) -> None:
    assert taken(site, "PUT", "/texts/%C3%BC", '"ü" \\u0000'.encode()) == ("ü", '"ü" \\u0000')


DIGITS = "1.00000000000000000001"


def test_row_e21_decimals_of_a_request_keep_their_digits(site: Site) -> None:
    content = f'{{"sku": "a", "price": {DIGITS}, "weight": 0.1}}'.encode()
    line = Line(sku="a", price=Decimal(DIGITS), weight=0.1)
    assert taken(site, "PUT", f"/lines/7?rate={DIGITS}", content, headers=JSON) == (7, Decimal(DIGITS), line)


def test_row_e21_content_beside_a_path_parameter_is_stored_as_it_came(site: Site) -> None:
    value = taken(site, "PUT", "/anything/7", b'{"a": 1, "n": 12345678901234567890123, "a": [2.50]}', headers=JSON)
    assert value == {"a": [2.5], "n": 12345678901234567890123}


@pytest.mark.parametrize("content", [b'{"x": NaN}', b'{"x": [-Infinity]}', b'{"x": Infinity, "y": "NaN"}'])
@pytest.mark.parametrize(("method", "path"), [("POST", "/echo"), ("PUT", "/anything/7"), ("PUT", "/lines/7")])
def test_row_e21_what_is_no_json_is_refused(site: Site, method: str, path: str, content: bytes) -> None:
    before = accepted(site)
    answer = site.client.request(method, path, content=content, headers=JSON)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert "no NaN and no infinity" in answer.json()["detail"]
    assert accepted(site) == before
    assert site.client.post("/echo", content=b'{"x": "NaN"}', headers=JSON).json() == {"x": "NaN"}


def test_row_e21_a_reply_that_is_no_json_is_none(site: Site) -> None:
    answer = site.client.post("/divide", content=b"0", headers=JSON)
    assert answer.status_code == 202
    wait_until(lambda: site.client.get(answer.json()["status"]).json()["state"] == "dead")
    (letter,) = site.store.dead_letters.read(site.store.dead_letters.select())
    assert "no NaN and no infinity" in letter.error


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/blobs/%ff", "the path"),
        ("/blobs/a%c3", "the path"),
        ("/blobs/a?tag=%ff", "the query"),
        ("/blobs/a?%ff=t", "the query"),
    ],
)
def test_row_e21_a_path_or_query_that_is_no_text_is_refused(site: Site, path: str, said: str) -> None:
    before = accepted(site)
    answer = site.client.put(path, content=b"x")
    assert answer.status_code == 400
    assert f"{said} is not UTF-8" in answer.json()["detail"]
    assert accepted(site) == before


def test_row_e21_a_path_of_other_bytes_is_refused(site: Site) -> None:
    before = accepted(site)
    for target in (b"/blobs/\xff", b"/blobs/a?tag=\xff"):
        with socket.create_connection(("127.0.0.1", site.port), SECONDS) as client:
            client.sendall(b"PUT " + target + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx")
            assert client.recv(1000).split(b" ")[1] == b"400"
    assert accepted(site) == before


@pytest.mark.parametrize("path", ["/blobs", "/blobs/a", "/texts/a"])
def test_row_e21_content_that_is_compressed_is_refused(site: Site, path: str) -> None:
    before = accepted(site)
    method = "POST" if path == "/blobs" else "PUT"
    answer = site.client.request(method, path, content=b"x", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415
    assert "content-encoding is gzip" in answer.json()["detail"]
    assert accepted(site) == before
    assert site.client.request(method, path, content=b"x", headers={"content-encoding": "identity"}).status_code == 202


def test_row_e21_text_of_another_charset_is_refused(site: Site) -> None:
    for charset, status in (("iso-8859-1", 415), ("UTF-8", 202), ('"utf-8"', 202), ("us-ascii", 202)):
        kind = {"content-type": f"text/plain; charset={charset}"}
        assert site.client.put("/texts/a", content="Ã¼".encode(), headers=kind).status_code == status


def test_arguments_pack_what_they_unpack() -> None:
    def handler(when: datetime, name: str, blob: bytes) -> None: ...

    app = App("shop")
    route = web.put("/x/{when}/{name}")
    app.flow(route)(handler)
    assert isinstance(route, Route)
    binding = app.flows["shop.handler"].binding
    assert isinstance(binding, RequestBinding)
    request = binding.arguments
    body = request.pack({"when": "2026-01-01T00:00:00Z", "name": 'a"b'}, [], b"\xfe")
    assert json.loads(body)["name"] == 'a"b'
    arguments = request.unpack(app.flows["shop.handler"].body.decode(body))
    assert (arguments["name"], arguments["blob"]) == ('a"b', b"\xfe")
