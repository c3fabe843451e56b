"""Bodies as JSON: numbers, texts and times come out with all their digits, or are refused by name."""

import enum
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
)

from flowkit import App, DefinitionError, Objects, RetryPolicy, web
from flowkit.errors import Undecodable
from flowkit.model.body import Body
from flowkit.model.channel import Channel
from flowkit.testing import Harness
from tests.support.bodies import Base, Named, handled

# ------------------------------------------------------------ what JSON cannot say


@pytest.mark.parametrize("value", ["hello", "5", "null", "", '"', "{}", 5, None, True, 1.5, [1, "a"], {"a": [None]}])
def test_row_e21_a_channel_without_a_type_carries_json(value: Any) -> None:
    came = handled(Any, value)
    assert (came, type(came)) == (value, type(value))


class Color(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [b"[1]", Decimal("1.5"), (1, 2), {1: "a"}, {"a": Decimal(1)}, {"a": b"x"}, [datetime(2026, 1, 1)], Color.RED, {1}],
    ids=str,
)
def test_row_e21_what_json_does_not_know_is_refused_by_a_channel_without_a_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r"channel in: .*without a type"):
        handled(Any, value)


@pytest.mark.parametrize("text", ["hello", "5", "null", "", '"', '"quoted"', "\u2028"])
def test_row_e21_text_comes_out_of_a_channel_without_a_type(text: str) -> None:
    assert handled(Any, text, str) == text
    assert handled(Any, {"text": text}, str) == f'{{"text":{json.dumps(text, ensure_ascii=False)}}}', "a look at JSON"


def test_row_e21_a_flow_that_takes_bytes_of_a_channel_without_a_type_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"flow shop.take: .*channel in has no type.*app\.channel\('in', bytes\)"):
        handled(Any, "hello", bytes)


class Measured(BaseModel):
    total: float
    more: float | None = None
    rest: list[float] = []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channel", ["float", "model", "optional", "list", "any", "dict", "decimal"])
def test_row_e21_no_number_and_endless_ones_are_refused(number: float, channel: str) -> None:
    carried, value = {
        "float": (float, number),
        "model": (Measured, Measured(total=number)),
        "optional": (Measured, Measured(total=1, more=number)),
        "list": (Measured, Measured(total=1, rest=[1, number])),
        "any": (Any, [number]),
        "dict": (dict[str, Any], {"a": number}),
        "decimal": (Base, Base.model_construct(name=Decimal(number))),
    }[channel]
    with pytest.raises(TypeError, match="channel in: "):
        handled(carried, value)
    assert handled(Measured, Measured(total=1)) == Measured(total=1)


class Constant(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    total: float


def test_row_e21_constants_that_are_no_json_are_refused() -> None:
    with pytest.raises(TypeError, match=r"channel in: .*no NaN and no infinity"):
        handled(Constant, Constant(total=math.inf))


class Tree(BaseModel):
    children: list["Tree"] = []
    name: str = "NaN, Infinity and null"


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [200, 201, 254, 300])
def test_row_e21_what_is_nested_deeper_than_a_decoder_goes_is_refused(depth: int) -> None:
    for carried in (Any, list[Any]):
        if depth <= 200:
            assert handled(carried, nested(depth)) == nested(depth)
        else:
            with pytest.raises(TypeError, match="channel in: "):
                handled(carried, nested(depth))
    tree = Tree()
    for _ in range(depth // 2):
        tree = Tree(children=[tree])
    if depth < 200:
        assert handled(Tree, tree) == tree
    else:
        with pytest.raises(TypeError, match="channel in: "):
            handled(Tree, tree)


class Big(BaseModel):
    text: str
    number: int


@pytest.mark.parametrize("padding", [0, 1, 4299, 9000])
def test_row_e21_an_integer_that_no_decoder_takes_is_refused(padding: int) -> None:
    good, bad = int("9" * 4300), int("9" * 4299) * 100
    text = "x" * padding
    assert handled(Big, Big(text=text, number=good)).number == good
    for carried, value in ((Big, Big(text=text, number=bad)), (int, bad), (Any, [bad]), (list[int], [bad])):
        with pytest.raises(TypeError, match="channel in: "):
            handled(carried, value)


@pytest.mark.parametrize("carried", [Base, int, dict, list[Base], Any, str])
def test_row_e21_bytes_are_no_body_of_another_type(carried: Any) -> None:
    for junk in (b"junk", b'{"name": "a"}', bytearray(b"[]")):
        with pytest.raises(TypeError, match="channel in"):
            handled(carried, junk)


def test_text_is_not_taken_for_bytes() -> None:
    with pytest.raises(TypeError, match="channel in carries bytes"):
        handled(bytes, "text")
    assert handled(bytes, b"\xff") == b"\xff"
    assert handled(str, '"text"') == '"text"'


class Priced(BaseModel):
    price: Decimal
    weight: float = 0
    extra: dict[str, Any] = {}


DIGITS = "12345678901234567890.12345678901234567890"


@pytest.mark.parametrize("text", ["1.00000000000000000001", DIGITS, "1.10", "-1e-400", "0.1", "1E+3"])
@pytest.mark.parametrize("carried", [Priced, Decimal, list[Decimal], "alone"])
def test_row_e21_decimals_keep_all_digits_of_a_number(text: str, carried: Any) -> None:
    document, carried = {
        Priced: (f'{{"price": {text}, "weight": {text}, "extra": {{"a": "b, 1.5"}}}}', Priced),
        Decimal: (text, Decimal),
        list[Decimal]: (f"[1.5,{text}]", list[Decimal]),
        "alone": (f'{{"price":"{text}"}}', Priced),
    }[carried]
    body = Channel("in", carried).body
    came = body.decode(document.encode())
    price = came.price if isinstance(came, Priced) else came[1] if isinstance(came, list) else came
    assert price == Decimal(text)
    if isinstance(came, Priced) and came.weight:
        assert came.weight == float(text)
    assert body.decode(body.encode(came)) == came


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: datetime
    price: Decimal


def test_row_e21_a_number_whose_digits_would_be_lost_is_dead() -> None:
    body = Channel("in", Strict).body
    assert body.decode(b'{"day": "2026-01-01T00:00:00Z", "price": 1.5}').price == Decimal("1.5")
    with pytest.raises(Undecodable, match="more digits than"):
        body.decode(b'{"day": "2026-01-01T00:00:00Z", "price": 1.00000000000000000001}')


class Dated(BaseModel):
    at: datetime


@pytest.mark.parametrize("seconds", [30, -30, 3630, -3661])
def test_row_e21_an_offset_with_seconds_is_refused(seconds: int) -> None:
    at = datetime(2026, 1, 1, tzinfo=timezone(timedelta(seconds=seconds)))
    for carried, value in ((Dated, Dated(at=at)), (datetime, at), (Dated, {"at": at})):
        with pytest.raises(TypeError, match=r"channel in: .*seconds of its UTC offset"):
            handled(carried, value)


@pytest.mark.parametrize(
    "at",
    [
        datetime(2026, 1, 1),
        datetime.max,
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2026, 1, 1, tzinfo=UTC),
    ],
    ids=str,
)
def test_other_times_come_out_also_those_that_are_there_twice(at: datetime) -> None:
    came = handled(Dated, Dated(at=at)).at
    assert (came.replace(tzinfo=None, fold=0), came.utcoffset()) == (at.replace(tzinfo=None, fold=0), at.utcoffset())


@pytest.mark.parametrize(
    ("taken", "value"), [(str, "5"), (bytes, b"\xff"), (Base, Base(name="a")), (Decimal, Decimal(1))]
)
def test_row_e21_a_route_carries_what_its_flow_takes(taken: Any, value: Any) -> None:
    """Programs and `flowkit send` publish there too."""
    app, got = App("shop"), []

    def take(body: Any) -> None:
        got.append(body)

    take.__annotations__["body"] = taken
    route = web.post("/in")
    app.flow(route)(take)
    with Harness(app) as harness:
        harness.publish(route, value)
        with pytest.raises(TypeError, match=r"flow shop\.take, parameter body"):
            harness.publish(route, object())
        harness.until_quiet()
    assert got == [value]


# ------------------------------------------------------------ what lies there already


@pytest.mark.parametrize(
    ("carried", "body", "value"),
    [
        (Any, b"[1, NaN]", [1]),
        (Any, b"Infinity", math.inf),
        (Base, b'{"name":"a"}', Base(name="a")),
        (Named, b'{"number":1}', Named.of(1)),
        (str, b"hello", "hello"),
        (str, b'"hello"', '"hello"'),
    ],
    ids=str,
)
def test_bodies_of_the_version_before_stay_readable(carried: Any, body: bytes, value: Any) -> None:
    came = Channel("in", carried).body.decode(body)
    assert (came[:1] if isinstance(came, list) else came) == value
    assert Body(str, "flow", untyped=True).decode(b"hello") == "hello"


# ------------------------------------------------------------ siblings


@pytest.mark.parametrize("value", [int("9" * 4300) * 10, nested(201)], ids=["integer", "nesting"])
def test_an_object_that_could_not_be_read_again_is_refused(value: Any) -> None:
    app = App("shop")

    @app.flow(app.channel("in", int), retry=RetryPolicy(attempts=1))
    def keep(number: int, objects: Objects) -> None:
        objects.put("it", value if number else nested(200))
        objects.get("it")

    with Harness(app) as harness:
        for number in (0, 1):
            harness.publish("in", number)
        harness.until_quiet()
        assert harness.balances()["shop.keep"].applied == 1
        assert "object it: " in harness.dead()[0].error
