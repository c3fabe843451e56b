"""The corpus: envelopes, headers and bodies, made from a seed. The same seed and count make the same corpus anywhere.

A `Door` is an input through a public entry point. A `Raw` is an input that a broken or foreign producer, or another
version, puts directly into a queue or table. Its body is unique, so that its outcome can be found.
"""

import datetime
import decimal
import hashlib
import json
import math
import random
import string
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

DOOR_SHARE = 0.4
BIG_BYTES = 300_000
EACH_BIG = 2500
MARGIN_BYTES = 4096
TEXTS = [
    "", " ", "a", "\x00", "\n", "\r\n", "\t", "\x7f", "\x85", "\ud800", "\udfff\ud800", "\ufeff", "\u202e", "ü", "𝄞",
    "e\u0301", "null", "0", "'; --", "../..", "%s%n", "{}", "$ne", "\\", '"', "channel:orders", "exchange:events",
    "ü" * 200, "x" * 255, "x" * 256, "𝄞" * 255, "x" * 5000,
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, -0.0, 1e-320, 1e308,
    math.inf, -math.inf, math.nan, 253_402_300_800, True,
]  # fmt: skip
SPACES = " \t\n\r"
"""What may stand behind any JSON: in these digits, so many, a body has its number."""
TOKEN_BYTES = 10
RESERVED = ["flowkit", "CC", "BCC", "x-delivery-count", "x-death", "x-first-death-queue", "x-match", "content-type"]
ATTRIBUTES = ("id", "source", "type", "key", "time", "correlation", "causation")
"""The part of an envelope that other programs know."""
OWN = ("row", "generation", "attempts", "staged", "id", "source", "channel", "type", "key", "time", "correlation",
       "causation")  # fmt: skip
"""The envelope as FlowKit writes it for a broker, in this order."""
COUNTS = ("generation", "attempts", "deliveries", "staged", "time", "due")
FLOWS = {"orders": "fuzz.accept", "parcels": "fuzz.deliver", "anything": "fuzz.take", "events": "fuzz.meet",
         "texts": "fuzz.read", "blobs": "fuzz.keep"}  # fmt: skip
"""Channel -> its flow."""
OBEYED = ("orders", "parcels", "events")
"""Channels of orders, whose deeds are done."""
PREFIXES = ("ce-", "ce_", "cloudEvents:", "cloudEvents_")
SHORT_PROPERTIES = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "type", "app_id",
                    "cluster_id")  # fmt: skip


class Typed(NamedTuple):
    """A value of an AMQP table, by its type's letter and its bytes."""

    kind: str
    data: bytes


class Edit(NamedTuple):
    """A change to encoded bytes, at a share of their length."""

    how: str
    at: float
    to: float
    byte: int


class Door(NamedTuple):
    """What a program hands to `app.publish`."""

    channel: str
    value: Any
    options: Mapping[str, Any] = {}
    sure: str = ""
    """What must become of it, where that is known: applied or dead."""
    kind: str = ""


class Raw(NamedTuple):
    """What lies in a queue or a table, and came there past the door."""

    number: int
    channel: str
    body: bytes
    envelope: Mapping[str, Any]
    """By field; what is missing there is missing."""
    group: int
    """The number of the input whose identity it has: its own, unless it is a duplicate. One of a group takes effect."""
    foreign: bool = False
    """Whether it claims to be no message of FlowKit's."""
    prefix: str = ""
    """Of the headers in which a foreign one has its attributes; empty: it has AMQP's own properties."""
    headers: Mapping[str, Any] = {}
    properties: Mapping[str, Any] = {}
    edits: tuple[Edit, ...] = ()
    exchange: bool = False
    """Whether it is sent to the exchange of its channel."""
    sure: str = ""
    kind: str = ""


Input = Door | Raw


class Limits(NamedTuple):
    """How far headers go. What brokers' clients cannot take is beyond the defaults."""

    depth: int = 300
    header_bytes: int = 120_000


def corpus(seed: int, count: int, limits: Limits | None = None) -> list[Input]:
    """So many inputs. Every kind has some if there are a few hundred."""
    maker = Maker(random.Random(seed), limits or Limits())
    return [maker.make(number) for number in range(count)]


def fingerprint(inputs: list[Input]) -> str:
    """What two runs over the same corpus have in common."""
    hashed = hashlib.sha256()
    for one in inputs:
        hashed.update(repr(one).encode("utf-8", "backslashreplace"))
    return hashed.hexdigest()[:16]


def damaged(encoded: bytes, edits: tuple[Edit, ...]) -> bytes:
    """Bytes after these changes."""
    for edit in edits:
        if encoded:
            encoded = _damage(bytearray(encoded), edit)
    return encoded


def _damage(encoded: bytearray, edit: Edit) -> bytes:
    first, last = sorted((int(edit.at * len(encoded)), int(edit.to * len(encoded))))
    if edit.how == "flip":
        encoded[first] ^= edit.byte
    elif edit.how == "set":
        encoded[first] = edit.byte
    elif edit.how == "delete":
        del encoded[first : last + 1]
    elif edit.how == "insert":
        encoded.insert(first, edit.byte)
    elif edit.how == "double":
        encoded[last:last] = encoded[first:last]
    elif edit.how == "swap":
        encoded[first], encoded[last] = encoded[last], encoded[first]
    return bytes(encoded)


DOORS = ("plain", "shape", "deep", "number", "text", "bytes", "type", "field", "name", "headers", "delay", "again")
RAWS = ("plain", "body", "missing", "typed", "range", "text", "headers", "edited", "properties", "again", "clash")
KINDS = (
    *(f"door {kind}" for kind in (*DOORS, "big")),
    *(f"{who} {kind}" for who in ("forged", "foreign") for kind in RAWS),
)
"""Of inputs: through the door, and past it, by who they claim to be of."""


class Maker:
    """Makes inputs one after the other."""

    def __init__(self, drawn: random.Random, limits: Limits) -> None:
        self._drawn = drawn
        self._limits = limits
        self._published: list[Door] = []
        self._plain: list[Raw] = []
        """Those that can have duplicates."""

    def make(self, number: int) -> Input:
        if number % EACH_BIG == 7:
            return self._door("big", number)
        if self._drawn.random() < DOOR_SHARE:
            return self._door(self._drawn.choice(DOORS), number)
        kind = self._drawn.choice(RAWS)
        made: Raw = getattr(self, f"_raw_{kind}")(self._valid(number))
        return made._replace(kind=f"{'foreign' if made.foreign else 'forged'} {kind}")

    # ------------------------------------------------------------ through the door

    def _door(self, kind: str, number: int) -> Door:
        made: Door = getattr(self, f"_door_{kind}")(number)
        return made._replace(kind=f"door {kind}")

    def _door_big(self, number: int) -> Door:
        return Door(self._drawn.choice(["anything", "blobs"]), b"[" + b"1," * (BIG_BYTES // 2) + b"1]")

    def _door_shape(self, number: int) -> Door:
        return Door("anything", self.value(4))

    def _door_number(self, number: int) -> Door:
        return Door("anything", {"n": self._drawn.choice(NUMBERS)})

    def _door_bytes(self, number: int) -> Door:
        return Door(self._drawn.choice(["orders", "anything", "blobs"]), self.torn())

    def _door_field(self, number: int) -> Door:
        return Door("orders", {"name": "f", self.text(): self.value(2)})

    def _door_plain(self, number: int) -> Door:
        channel = self._drawn.choice(["orders", "parcels", "anything", "events"])
        deed = self._drawn.choice(["", "", "", "fail", "reject"])
        sure = "dead" if deed and channel in OBEYED else "applied"
        door = Door(channel, {"name": f"d{number}", "deed": deed}, {"id": f"d-{self._fresh(number)}"}, sure)
        self._published.append(door)
        return door

    def _door_deep(self, number: int) -> Door:
        depth = self._drawn.randint(1, 400)
        if self._drawn.random() < 0.5:
            return Door("anything", (b"[" * depth * 50) + b"]" * (depth * 50))
        value: Any = 0
        for _ in range(depth):
            value = [value] if self._drawn.random() < 0.5 else {"d": value}
        return Door("anything", value)

    def _door_text(self, number: int) -> Door:
        channel = self._drawn.choice(["texts", "anything", "orders", "blobs"])
        text = self.text()
        return Door(channel, {"name": text} if channel == "orders" else text)

    def _door_type(self, number: int) -> Door:
        wrong: list[Any] = [
            None, 3, [], "text", {"name": None}, {"name": 3}, {"deed": "x"}, {"name": ["a"]}, {3: 4}, {"name": b"\xff"},
            {"name": "x", "deed": {}}, 1 + 2j, {1}, range(3), decimal.Decimal("NaN"), datetime.timedelta(1), b"",
        ]  # fmt: skip
        return Door(self._drawn.choice(["orders", "texts", "blobs", "anything"]), self._drawn.choice(wrong))

    def _door_name(self, number: int) -> Door:
        options = {name: self.odd(number) for name in ("id", "key") if self._drawn.random() < 0.6}
        return Door("orders", {"name": f"d{number}"}, options)

    def _door_headers(self, number: int) -> Door:
        headers: Any = {self.name(): self.odd(number) for _ in range(self._drawn.randint(1, 4))}
        if self._drawn.random() < 0.05:
            headers = self._drawn.choice([[], "text", 3, [("a", "b")]])
        return Door("orders", {"name": f"d{number}"}, {"headers": headers})

    def _door_delay(self, number: int) -> Door:
        delay: Any = self._drawn.choice(
            [0, 0.01, "10ms", -1, "-1s", "", "soon", "1", "1e9d", math.nan, math.inf, None, [], 1e30]
        )
        return Door("orders", {"name": f"d{number}"}, {"delay": delay})

    def _door_again(self, number: int) -> Door:
        if not self._published:
            return self._door_plain(number)
        return self._drawn.choice(self._published)._replace(sure="")

    # ------------------------------------------------------------ past the door

    def _valid(self, number: int) -> Raw:
        """A message with nothing wrong."""
        foreign = self._drawn.random() < 0.5
        channel = self._drawn.choice(list(FLOWS))
        envelope = {
            "row": f"row-{number}",
            "generation": 0,
            "attempts": 0,
            "deliveries": 0,
            "staged": 0.0,
            "due": 0.0,
            "id": f"r-{self._fresh(number)}",
            "source": self._drawn.choice(["elsewhere", "east", "fuzz"]),
            "channel": "forged",
            "type": "Order",
            "key": self._drawn.choice([None, "k1", "k2"]),
            "time": 1_700_000_000.5,
            "correlation": self._drawn.choice([None, "talk"]),
            "causation": None,
        }
        return Raw(
            number,
            channel,
            order(number),
            envelope,
            number,
            foreign,
            self._drawn.choice([*PREFIXES, ""]) if foreign else "",
            {"h": "v"},
            exchange=foreign and channel == "events" and self._drawn.random() < 0.7,
        )

    def _raw_plain(self, raw: Raw) -> Raw:
        deed = self._drawn.choice(["", "", "", "fail", "reject"])
        sure = "dead" if deed and raw.channel in OBEYED else "applied"
        made = raw._replace(body=order(raw.number, deed), sure=sure)
        self._plain.append(made)
        return made

    def _raw_body(self, raw: Raw) -> Raw:
        return raw._replace(body=self.torn() + _token(raw.number))

    def _raw_missing(self, raw: Raw) -> Raw:
        gone = self._drawn.sample(list(raw.envelope), self._drawn.randint(1, 4))
        return raw._replace(envelope={name: value for name, value in raw.envelope.items() if name not in gone})

    def _raw_typed(self, raw: Raw) -> Raw:
        wrong = {name: self._other(raw.number) for name in self._some(raw)}
        return raw._replace(envelope={**raw.envelope} | wrong)

    def _raw_range(self, raw: Raw) -> Raw:
        names = self._drawn.sample(COUNTS, self._drawn.randint(1, 3))
        wrong = {name: self._drawn.choice(NUMBERS) for name in names}
        if isinstance(wrong.get("due"), int | float) and not wrong["due"] <= 0:
            wrong["due"] = 0  # a delay of years is no fault, and this run has an end
        body = order(raw.number, self._drawn.choice(["", "fail"]))
        return raw._replace(envelope={**raw.envelope} | wrong, body=body)

    def _raw_text(self, raw: Raw) -> Raw:
        wrong = {name: self.odd(raw.number) for name in self._some(raw)}
        body = order(raw.number, self._drawn.choice(["", "fail", "reject"]))
        return raw._replace(envelope={**raw.envelope} | wrong, body=body)

    def _raw_headers(self, raw: Raw) -> Raw:
        headers: dict[str, Any] = {}
        for _ in range(self._drawn.randint(1, 6)):
            name, value = self.name(), self.field(self._drawn.choice([0, 2, 3, self._limits.depth]))
            if name in ("CC", "BCC"):
                value = self._drawn.choice([[], ["nowhere"]])  # anything else ends the sender's own channel
            elif name.lower().startswith(PREFIXES):
                value = self._other(raw.number)
            headers[name] = value
        if self._drawn.random() < 0.01:
            headers = {"wide": "w" * (self._limits.header_bytes - MARGIN_BYTES)}
        return raw._replace(headers=headers)

    def _raw_edited(self, raw: Raw) -> Raw:
        return raw._replace(edits=self.edits())

    def _raw_properties(self, raw: Raw) -> Raw:
        made = {name: self.odd(raw.number) for name in SHORT_PROPERTIES if self._drawn.random() < 0.4}
        numbers: dict[str, Any] = {
            "priority": self._drawn.choice([0, 9, 255]),
            "delivery_mode": self._drawn.choice([1, 2]),
            "timestamp": self._drawn.choice([0, 1, 2**32, 2**63, 2**64 - 1]),
            "expiration": "86400000",
        }
        made |= {name: value for name, value in numbers.items() if self._drawn.random() < 0.5}
        count = self._drawn.choice([None, 0, -1, 2**62, "many", True, [1], {"a": 1}, 0.5, b"\xff"])
        return raw._replace(properties=made, headers={"x-delivery-count": count})

    def _raw_again(self, raw: Raw) -> Raw:
        """The same message once more: sent again, or copied by whoever."""
        if not self._plain:
            return self._raw_plain(raw)
        first = self._drawn.choice(self._plain)
        return first._replace(number=raw.number, envelope={**first.envelope} | {"row": raw.envelope["row"]}, sure="")

    def _raw_clash(self, raw: Raw) -> Raw:
        """Another message under the id of one that was before."""
        return self._raw_again(raw)._replace(body=order(raw.number), sure="")

    def _some(self, raw: Raw) -> list[str]:
        """Some fields to put something else into."""
        names = [name for name in raw.envelope if name != "due"]
        return self._drawn.sample(names, self._drawn.randint(1, 3))

    # ------------------------------------------------------------ pieces

    def _fresh(self, number: int) -> str:
        """An id that no slip of a digit makes another's."""
        return f"{number}-{self._drawn.getrandbits(64):016x}"

    def text(self) -> str:
        if self._drawn.random() < 0.5:
            return self._drawn.choice(TEXTS)
        top = self._drawn.choice([0x7F, 0x2FF, 0xFFFF, 0x10FFFF])
        return "".join(chr(self._drawn.randint(0, top)) for _ in range(self._drawn.choice([1, 3, 20, 255, 300])))

    def odd(self, number: int) -> str:
        """Odd text that no other input has, unless it is empty."""
        text = self.text()
        return text and f"{number:08}{text[8:] or text}"

    def name(self) -> str:
        """A header's name."""
        attribute = self._drawn.choice(PREFIXES) + self._drawn.choice(["id", "time", "source", "partitionkey", "x"])
        return self._drawn.choice([self.text(), self.text(), "h", attribute, self._drawn.choice(RESERVED)])

    def _other(self, number: int) -> Any:
        """A value of some other type, which no other input has."""
        return self._drawn.choice(
            [number, -number, number + 0.5, [number], {"n": [number]}, f"{number}".encode(), decimal.Decimal(number)]
        )

    def value(self, depth: int) -> Any:
        """What JSON can say, and a little more."""
        if depth and self._drawn.random() < 0.5:
            items = [self.value(depth - 1) for _ in range(self._drawn.randint(0, 4))]
            return items if self._drawn.random() < 0.5 else {self.text()[:40]: one for one in items}
        return self._drawn.choice([None, True, False, self.text(), self._drawn.choice(NUMBERS), self._drawn.random()])

    def field(self, depth: int) -> Any:
        """What a table of AMQP can hold: of every type, nested to a depth. RabbitMQ itself takes no number that is
        none, nor an endless one: it closes the connection of who sends it."""
        if depth:
            inner = self.field(depth - 1)
            return [inner] if self._drawn.random() < 0.5 else {self.text()[:60]: inner, "n": 1}
        return self._drawn.choice(
            [
                None, True, self.text(), self.text().encode("utf-8", "surrogatepass"), 2**62, -(2**62),
                decimal.Decimal("-3.14"), datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
                Typed("b", b"\xff"), Typed("B", b"\xff"), Typed("s", b"\xff\xfd"), Typed("u", b"\xff\xfd"),
                Typed("i", b"\xff" * 4), Typed("T", struct.pack(">Q", self._drawn.getrandbits(64))),
                Typed("f", struct.pack(">f", self._drawn.random())),
                Typed("d", struct.pack(">d", -1e300)),
                Typed("D", b"\xff" + struct.pack(">i", -1)),
                Typed("S", struct.pack(">I", 3) + b"\xff\x00\xfe"), [], {}, {"": {"": []}},
            ]
        )  # fmt: skip

    def edits(self) -> tuple[Edit, ...]:
        return tuple(
            Edit(
                self._drawn.choice(["flip", "set", "delete", "insert", "double", "swap"]),
                self._drawn.random(),
                self._drawn.random(),
                self._drawn.choice([0, 1, 0x20, 0x80, 0xFF, ord(self._drawn.choice(string.printable))]),
            )
            for _ in range(self._drawn.choice([1, 1, 1, 2, 5]))
        )

    def torn(self) -> bytes:
        """A body that is broken, or nearly so."""
        good = json.dumps({"name": self.text()[:100], "deed": ""}, ensure_ascii=self._drawn.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
        choices: list[Callable[[], bytes]] = [
            lambda: good[: self._drawn.randrange(len(good))],
            lambda: good + good,
            lambda: damaged(good, self.edits()),
            lambda: self._drawn.randbytes(self._drawn.randint(0, 60)),
            lambda: b"[" * self._drawn.choice([10, 500, 50_000]),
            lambda: b'{"name":' * self._drawn.choice([10, 500]),
            lambda: self._drawn.choice([b"", b"null", b"NaN", b"-", b"1e999", b'{"name":1e999}', b"\xef\xbb\xbf{}"]),
            lambda: self._drawn.choice(
                [b"\xff\xfe{\x00}\x00", b'{"name":"\\ud800"}', b'{"name":"\x00"}', b'"\\u0000"']
            ),
            lambda: b"9" * self._drawn.choice([5, 400, 5000]),
            lambda: b'{"name":"a","name":3,"deed":"\\u0000"}',
        ]
        return self._drawn.choice(choices)()


def order(number: int, deed: str = "") -> bytes:
    """A good body, with what its handler shall do."""
    return json.dumps({"name": f"r{number}", "deed": deed}).encode() + _token(number)


def _token(number: int) -> bytes:
    """White space that says which input this is."""
    digits = []
    for _ in range(TOKEN_BYTES):
        number, digit = divmod(number, len(SPACES))
        digits.append(SPACES[digit])
    return "".join(digits).encode()
