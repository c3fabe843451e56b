"""Messages of other programs: their business keys, and bodies that they compress."""

import gzip
import zlib
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from flowkit import App, DefinitionError, Message
from flowkit.errors import Undecodable
from flowkit.model.identity import Identifier, expand
from tests.support.shared_site import Site, Supplier
from tests.support.shop import Order, new_app, running
from tests.support.waiting import wait_until


@dataclass
class Parcel:
    number: int


class Line(BaseModel):
    order: Order
    number: int


@pytest.mark.parametrize(
    ("kind", "id_from", "message"),
    [
        (Order, "nmae", "has no field nmae; its fields are name, deed"),
        (Parcel, "id", "has no field id; its fields are number"),
        (bytes, "id", "its body is bytes; write a function"),
    ],
)
def test_a_key_that_cannot_be_there_is_refused(kind: Any, id_from: str, message: str) -> None:
    app = App("shop")
    app.flow(app.channel("in", kind, shared=True), name="take", id_from=id_from)(lambda body: None)
    with pytest.raises(DefinitionError, match=f"flow shop.take: id_from='{id_from}'.*{message}"):
        app.check()


def _found(kind: Any, id_from: Any, body: bytes) -> str:
    app = App("shop")
    app.flow(app.channel("in", kind), name="take", id_from=id_from)(lambda body: None)
    finder: Identifier = app.flows["shop.take"].identifier
    finder.check()
    return finder.find(Message("given", "erp", "in", body))


def test_a_key_is_a_field_a_path_or_a_function() -> None:
    assert _found(Order, "name", b'{"name": "a"}') == "a"
    assert _found(Parcel, "number", b'{"number": 7}') == "7"
    assert _found(Line, "order.name", b'{"order": {"name": "a"}, "number": 1}') == "a"
    assert _found(dict, "order.name", b'{"order": {"name": "a"}}') == "a"
    assert _found(bytes, lambda body: body[:2].decode(), b"42...") == "42"
    assert _found(Order, None, b'{"name": "a"}') == "given"


def test_a_body_without_its_key_is_a_dead_letter() -> None:
    app = new_app()
    orders = app.channel("orders", dict, shared=True)
    app.flow(orders, name="accept", id_from="number")(lambda body: None)
    with running(app, "sqlite:///:memory:", broker=True) as harness:
        for body in (b"{}", b'{"number": null}', b'{"number": true}', b'{"number": [1]}', b'{"number": ""}', b"no"):
            harness.broker.deliver("shop.accept", Message("", "erp", "", body))
        harness.until_quiet()
        letters = harness.dead()
        assert [letter.reason for letter in letters] == ["undecodable"] * 6
        assert all(letter.message.id.startswith("sha256-") for letter in letters)
        assert {letter.message.channel for letter in letters} == {"orders"}
        assert sum("which is no id" in letter.error for letter in letters) == 5


def test_a_channel_is_shared_or_it_is_not() -> None:
    app = App("shop")
    app.channel("orders", Order, shared=True)
    with pytest.raises(DefinitionError, match="orders is declared twice"):
        app.channel("orders", Order)


GOOD = b'{"name": "a"}'
COMPRESSED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", COMPRESSED),
        ("GZIP", gzip.compress(GOOD[:5], mtime=0) + gzip.compress(GOOD[5:], mtime=0)),
        ("deflate", zlib.compress(GOOD)),
        ("gzip:UTF-8", COMPRESSED),
        ("utf-8", GOOD),
        ("", GOOD),
    ],
)
def test_row_e21_what_others_compress_is_expanded(encoding: str, body: bytes) -> None:
    expanded = expand(Message("a", "erp", "in", body, headers={"content-encoding": encoding, "h": "v"}), len(GOOD))
    assert expanded.body == GOOD
    assert ("content-encoding" in expanded.headers) == (body == GOOD), "the headers say what the body is now"


@pytest.mark.parametrize(
    ("encoding", "body", "said"),
    [
        ("br", GOOD, "its content_encoding is 'br'; it may be gzip, deflate or none"),
        ("gzip, deflate", COMPRESSED, "it may be gzip, deflate or none"),
        ("gzip", GOOD, "its body is not"),
        ("gzip", b"", "is cut off"),
        ("gzip", COMPRESSED[:-9], "is cut off"),
        ("gzip", gzip.compress(b" " * 10_000_000, mtime=0), "exceeds the limit of 1,000 bytes"),
        ("gzip", COMPRESSED + gzip.compress(b" " * 10_000_000, mtime=0), "exceeds the limit of 1,000 bytes"),
        ("gzip", COMPRESSED + b"junk", "its body is not"),
    ],
)
def test_row_e21_what_cannot_be_expanded_is_refused(encoding: str, body: bytes, said: str) -> None:
    with pytest.raises(Undecodable, match=said):
        expand(Message("a", "erp", "in", body, headers={"content-encoding": encoding}), 1_000)


def test_row_e21_what_others_compress_takes_effect_or_is_dead(site: Site, supplier: Supplier, channel: str) -> None:
    blobs: list[Message] = []

    def keep(body: bytes, message: Message) -> None:
        blobs.append(message)

    site.app.flow(site.app.channel(f"{channel}-blobs", bytes, shared=True))(keep)
    site.app.connect(site.services)
    with site.worker():
        supplier.send(channel, COMPRESSED, message_id="a", content_encoding="gzip")
        supplier.send(channel, GOOD, message_id="b", content_encoding="br")
        supplier.send(f"{channel}-blobs", COMPRESSED, message_id="c", content_encoding="gzip")
        wait_until(lambda: len(blobs) == 1 and site.effects() == {"a": 1})
        wait_until(lambda: site.store.ledger.balances()["shop.accept"].dead == 1)
        site.rest()
    (letter,) = site.store.dead_letters.read(site.store.dead_letters.select())
    assert (letter.message.headers["ce-id"], letter.message.body) == ("b", GOOD)
    assert "its content_encoding is 'br'" in letter.error
    assert (blobs[0].body, blobs[0].headers) == (COMPRESSED, {"content-encoding": "gzip"}), "bytes come as they are"
