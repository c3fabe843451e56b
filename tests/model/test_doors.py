"""Every door, kind of annotation and store: what is accepted comes out as it went in, or is refused by name."""

import asyncio
import dataclasses
import enum
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import count
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote
from uuid import UUID

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field
from typing_extensions import TypedDict

from flowkit import App, FlowKitError, Message, Outbox, RetryPolicy, web
from flowkit.cli.send import Values
from flowkit.message import ORIGINAL_ID
from flowkit.message import Message as Envelope
from flowkit.testing import Harness
from flowkit.testing.harness import MEMORY
from flowkit.web.ingress import Ingress


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Flat(BaseModel):
    number: int
    total: float
    name: str
    price: Decimal
    at: datetime
    day: date
    color: Color
    id: UUID
    wait: timedelta
    note: str | None = None


class Aliased(BaseModel):
    order_number: int = Field(alias="orderNumber")
    order_total: float | None = Field(None, alias="orderTotal")


class Line(BaseModel):
    sku: str = Field(max_length=1000)
    price: Decimal = Field(ge=0)


class Gift(Line):
    card: str = ""


class Order(BaseModel):
    lines: list[Line]
    rest: dict[str, Any] = {}
    either: int | str | Decimal = 0


class Tree(BaseModel):
    children: list["Tree"] = []


class Growing(BaseModel):
    number: Annotated[int, AfterValidator(lambda number: number * 100)]


@dataclasses.dataclass
class Plain:
    number: int
    total: float
    tags: list[str]


class Mapped(TypedDict):
    number: int
    tags: list[str]


texts = st.text(st.characters(codec="utf-8"), max_size=20)
integers = st.integers() | st.sampled_from([18, 19, 4299, 4300, 4999]).map(lambda digits: 10**digits)
floats = st.floats() | st.sampled_from([math.nan, math.inf, -0.0])
decimals = st.decimals(allow_nan=False, allow_infinity=False) | st.sampled_from([Decimal("1.00000000000000000001")])
zones = st.timedeltas(timedelta(hours=-20), timedelta(hours=20)).map(timezone) | st.sampled_from([UTC, None])
times = st.datetimes(timezones=st.just(UTC)) | st.datetimes(timezones=zones)
prices = st.decimals(0, 10**9, allow_nan=False) | st.just(Decimal("-1"))


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def tree(depth: int) -> Tree:
    return Tree(children=[tree(depth - 1)]) if depth else Tree()


documents = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
) | st.sampled_from([150, 200, 201, 254]).map(nested)
lines = st.builds(Line.model_construct, sku=texts, price=prices)
gifts = st.builds(Gift.model_construct, sku=texts, price=prices, card=texts)


class Kind(NamedTuple):
    """An annotation, and what is sent to a channel of it."""

    annotation: Any
    values: st.SearchStrategy[Any]
    told: Callable[[Any], Any] = lambda value: value
    """What a document of a value says; None if not the same."""


KINDS = [
    Kind(Any, documents),
    Kind(str, texts),
    Kind(bytes, st.binary(max_size=30)),
    Kind(int, integers),
    Kind(float, floats),
    Kind(Decimal, decimals),
    Kind(datetime, times),
    Kind(bool | None, st.booleans() | st.none()),
    Kind(list[Decimal], st.lists(decimals, max_size=3)),
    Kind(dict[str, Any], st.dictionaries(texts, documents, max_size=3)),
    Kind(int | str | Decimal, st.integers() | texts | decimals, lambda value: None),  # a document does not say which
    Kind(
        Flat,
        st.builds(
            Flat,
            number=integers,
            total=floats,
            price=decimals,
            at=times,
            wait=st.timedeltas(timedelta(-100), timedelta(100)),
            note=st.none() | texts | st.just("null"),
        ),
    ),
    Kind(Aliased, st.builds(Aliased, orderNumber=integers, orderTotal=st.none() | floats)),
    Kind(
        Order,
        st.builds(Order, lines=st.lists(lines | gifts, max_size=3), rest=st.dictionaries(texts, documents, max_size=2)),
        lambda order: None if any(isinstance(line, Gift) for line in order.lines) else order,
    ),
    Kind(Tree, st.sampled_from([0, 1, 99, 100, 120]).map(tree)),
    Kind(Growing, st.builds(Growing, number=st.integers(-3, 3)), lambda one: Growing(number=one.number)),
    Kind(Plain, st.builds(Plain, number=integers, total=floats, tags=st.lists(texts, max_size=2))),
    Kind(set[str], st.sets(texts, max_size=3)),
    Kind(tuple[int, str], st.tuples(integers, texts)),
    Kind(Mapped, st.fixed_dictionaries({"number": integers, "tags": st.lists(texts, max_size=2)})),
    Kind(Literal["red", "blue"], st.sampled_from(["red", "blue"])),
]
IDS = count()


class Thing(NamedTuple):
    """What is sent: a value, and beside it in a path a name."""

    kind: int
    value: Any
    name: str


LONG = Thing(0, ["x" * 70_000], "long")
"""Its content is one that a route reads in another process."""
names = texts.filter(lambda name: name not in ("", ".", "..") and "/" not in name)
things = st.integers(0, len(KINDS) - 1).flatmap(lambda kind: st.builds(Thing, st.just(kind), KINDS[kind].values, names))


def document(value: Any) -> str:
    """A value as JSON of another program: by aliases, and with all digits."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return document({field.alias or name: getattr(value, name) for name, field in fields})
    if isinstance(value, Plain):
        return document(vars(value))
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}: {document(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple | set):
        return "[" + ", ".join(map(document, value)) + "]"
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return str(Decimal(value))
    if isinstance(value, datetime | date):
        return json.dumps(value.isoformat())
    if isinstance(value, timedelta):
        return json.dumps(duration(value))
    return json.dumps(value.value if isinstance(value, Color) else str(value) if isinstance(value, UUID) else value)


def duration(value: timedelta) -> str:
    size = abs(value)
    return f"{'-' if value != size else ''}P{size.days}DT{size.seconds}.{size.microseconds:06}S"


def content(thing: Thing) -> bytes:
    """What a request, or another program, sends of it."""
    if isinstance(thing.value, bytes) or KINDS[thing.kind].annotation is str:
        return thing.value if isinstance(thing.value, bytes) else str(thing.value).encode()
    return document(thing.value).encode()


def same(went: Any, came: Any) -> bool:
    """Equality of the same types, where no number is no number, and times are what they show."""
    if type(went) is not type(came):
        return False
    if isinstance(went, BaseModel | Plain):
        return same(vars(went), vars(came))
    if isinstance(went, dict):
        return went.keys() == came.keys() and all(same(one, came[name]) for name, one in went.items())
    if isinstance(went, list):
        return len(went) == len(came) and all(map(same, went, came))
    if isinstance(went, datetime):
        return (went.replace(tzinfo=None, fold=0), went.utcoffset()) == (came.replace(tzinfo=None), came.utcoffset())
    return bool(went == came) or (isinstance(went, float) and math.isnan(went) and math.isnan(came))


class House:
    """An app with a channel, a route for the content alone and one with a name beside it, for each kind."""

    def __init__(self, url: str) -> None:
        self.app = App("house")
        self.got: dict[str, Any] = {}
        self.waiting: list[Any] = []
        """What the next handler sends."""
        self.ends: Counter[tuple[str, str]] = Counter()
        self.channels = [self.app.channel(f"c{number}", kind.annotation) for number, kind in enumerate(KINDS)]
        for number, kind in enumerate(KINDS):
            self.serve(number, kind.annotation)
        self.app.flow(self.app.channel("go", int), to=self.channels, retry=RetryPolicy(attempts=1))(self.send)
        self.harness = Harness(self.app, url, broker=True)
        self.ingress = Ingress(self.app, self.harness.services, self.harness.worker, lambda: "")
        self.runner = asyncio.Runner()
        transport = httpx2.ASGITransport(app=self.ingress.asgi)
        self.client = httpx2.AsyncClient(transport=transport, base_url="http://house")

    def close(self) -> None:
        self.runner.close()
        self.ingress.close()
        self.harness.close()

    def serve(self, number: int, annotation: Any) -> None:
        def take(body: Any, message: Message) -> None:
            self.got[message.id] = body

        def alone(body: Any, message: Message) -> None:
            self.got[message.id] = body

        def beside(body: Any, name: str, message: Message) -> None:
            self.got[message.id] = (body, name)

        for handler in (take, alone, beside):
            handler.__annotations__["body"] = annotation
        self.app.flow(self.channels[number], name=f"take{number}")(take)
        self.app.flow(web.post(f"/alone{number}"), name=f"alone{number}")(alone)
        self.app.flow(web.put(f"/beside{number}/{{name}}"), name=f"beside{number}")(beside)

    def send(self, number: int, outbox: Outbox, message: Message) -> None:
        thing, id = self.waiting[number]
        self.got[id] = ("sent as", outbox.send(self.channels[thing.kind], thing.value))

    # ------------------------------------------------------------ doors: each returns why it refuses

    def publish(self, thing: Thing, id: str) -> str:
        return self.refused(lambda: self.harness.publish(self.channels[thing.kind], thing.value, id=id))

    def lines(self, thing: Thing, id: str) -> str:
        """`flowkit send`, of a line."""
        channel = self.channels[thing.kind]
        line = content(thing)
        if b"\n" in line or not line.strip() or line.endswith(b"\r"):
            return "it is not one line"
        return self.refused(lambda: self.app.publish_many(channel, Values(channel, [line]), [id]))

    def broker(self, thing: Thing, id: str) -> str:
        """Another program's message. What cannot be read is dead."""
        self.harness.broker.deliver(f"house.take{thing.kind}", Envelope(id, "house", "", content(thing)))
        return ""

    def alone(self, thing: Thing, id: str) -> str:
        return self.ask("POST", f"/alone{thing.kind}", thing, id)

    def beside(self, thing: Thing, id: str) -> str:
        return self.ask("PUT", f"/beside{thing.kind}/{quote(thing.name, safe='')}", thing, id)

    def ask(self, method: str, path: str, thing: Thing, id: str) -> str:
        asked = self.client.request(method, path, content=content(thing), headers={**JSON, "idempotency-key": id})
        answer = self.runner.run(asked)
        assert answer.status_code in (202, 400, 422), answer.text
        return "" if answer.status_code == 202 else str(answer.json()["detail"])

    def outbox(self, thing: Thing, id: str) -> str:
        self.waiting.append((thing, id))
        self.harness.publish("go", len(self.waiting) - 1, id=id)
        return ""

    def refused(self, door: Callable[[], object]) -> str:
        try:
            door()
        except (TypeError, FlowKitError) as error:
            assert "channel c" in str(error), error
            return str(error)
        return ""

    # ------------------------------------------------------------ ends

    def check(self, door: str, thing: Thing, id: str, why: str, dead: dict[str, str]) -> None:
        """Refused with a reason, or out as it went in."""
        sent = self.got.get(id)
        if door == "outbox" and sent is not None:
            id = sent[1]
        why = why or dead.get(id, "")
        self.ends[door, "refused" if why else "came"] += 1
        if why:
            assert id not in self.got, "refused, and yet it came"
            assert len(why) > 10
            return
        kind, came = KINDS[thing.kind], self.got[id]
        went = thing.value if door in ("publish", "outbox") else kind.told(thing.value)
        if door == "beside":
            assert came[1] == thing.name
            came = came[0]
        if went is not None or kind.annotation in (Any, bool | None):
            assert same(went, came), (door, kind.annotation, went, came)


JSON = {"content-type": "application/json"}
DOORS = ("publish", "lines", "broker", "alone", "beside", "outbox")


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    url = MEMORY if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")
    made = House(url)
    yield made
    made.close()


def test_row_e21_out_equals_in_or_is_refused(house: House) -> None:
    @example([LONG])
    @given(st.lists(things, min_size=10, max_size=20))
    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    def through(sent: list[Thing]) -> None:
        asked = [(door, thing, f"id-{next(IDS)}") for thing in sent for door in DOORS]
        whys = [getattr(house, door)(thing, id) for door, thing, id in asked]
        house.harness.until_quiet()
        dead = {one.message.headers.get(ORIGINAL_ID, one.message.id): one.error for one in house.harness.dead()}
        for (door, thing, id), why in zip(asked, whys, strict=True):
            house.check(door, thing, id, why, dead)

    through()
    for door in DOORS:
        assert house.ends[door, "came"] > 10, house.ends
        assert house.ends[door, "refused"] > 0, house.ends
    assert all(balance.balanced for balance in house.harness.balances().values())
