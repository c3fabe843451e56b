"""Bodies: what a channel accepts comes out as it went in, or is refused at the door by name."""

import dataclasses
import enum
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    Secret,
    SecretBytes,
    SecretStr,
    computed_field,
)

from flowkit import App, DefinitionError, Objects, RetryPolicy, web
from flowkit.errors import Undecodable
from flowkit.model.body import Body
from flowkit.model.channel import Channel
from flowkit.testing import Harness


def handled(carried: Any, value: Any, taken: Any = None) -> Any:
    """What the handler is given of a value that was published to a channel of this type."""
    app, got = App("shop"), []

    def take(body: Any) -> None:
        got.append(body)

    take.__annotations__["body"] = carried if taken is None else taken
    app.flow(app.channel("in", carried), name="take")(take)
    with Harness(app) as harness:
        harness.publish("in", value)
        harness.until_quiet()
        assert [letter.error for letter in harness.dead()] == []
    (body,) = got
    return body


class Aliased(BaseModel):
    number: int = Field(alias="orderNumber")


class Named(BaseModel):
    model_config = ConfigDict(validate_by_name=True)
    number: int = Field(alias="orderNumber")

    @classmethod
    def of(cls, number: int) -> "Named":
        return cls.model_validate({"number": number})


class Both(BaseModel):
    """One is found by its alias only."""

    aliased: Aliased
    named: Named


@dataclasses.dataclass
class AliasedPlain:
    number: Annotated[int, Field(alias="orderNumber")]


class Chosen(BaseModel):
    number: int = Field(validation_alias=AliasChoices("n", "number"))


@pytest.mark.parametrize(
    "value",
    [
        Aliased(orderNumber=1),
        Named.of(1),
        Both(aliased=Aliased(orderNumber=1), named=Named.of(2)),
        Chosen(n=1),  # type: ignore[call-arg]
    ],
    ids=lambda value: type(value).__name__,
)
def test_row_a1_an_alias_is_found_again(value: BaseModel) -> None:
    assert handled(type(value), value) == value
    assert handled(Any, value, type(value)) == value, "without a type of the channel too"


def test_a_channel_without_a_type_writes_aliases_as_ever() -> None:
    assert handled(Any, Named.of(1)) == {"orderNumber": 1}
    assert handled(Named, Named.of(1), dict) == {"number": 1}


class Elsewhere(BaseModel):
    number: int = Field(validation_alias="read", serialization_alias="written")


def test_row_a1_an_alias_that_nobody_finds_again_is_refused_at_definition() -> None:
    with pytest.raises(DefinitionError, match=r"channel in: field number of Elsewhere is written as number or written"):
        App("shop").channel("in", Elsewhere)


class Excluding(BaseModel):
    name: str
    total: int = Field(0, exclude=True)


class Login(BaseModel):
    name: str
    password: SecretStr


class Token(BaseModel):
    tokens: list[SecretBytes] = []


class Pin(BaseModel):
    pin: Secret[int] | None = None


class Inside(BaseModel):
    logins: dict[str, Login]


@pytest.mark.parametrize(
    ("carried", "field"),
    [
        (Excluding, "total of Excluding is excluded"),
        (list[Excluding], "total of Excluding is excluded"),
        (Login, "password of Login is a secret"),
        (Token, "tokens of Token is a secret"),
        (Pin, "pin of Pin is a secret"),
        (Inside, "password of Login is a secret"),
        (SecretStr, "SecretStr is a secret"),
    ],
    ids=str,
)
def test_row_a1_what_never_comes_out_is_refused_at_definition(carried: Any, field: str) -> None:
    with pytest.raises(DefinitionError, match=f"channel in: .*{field}"):
        App("shop").channel("in", carried)


def test_row_a1_a_secret_is_refused_by_a_channel_without_a_type_at_the_send() -> None:
    with pytest.raises(DefinitionError, match="password of Login is a secret"):
        handled(Any, Login(name="a", password=SecretStr("s")))


def test_a_handler_may_read_a_secret_that_a_channel_without_a_type_carries() -> None:
    login = handled(Any, {"name": "a", "password": "s"}, Login)
    assert login.password.get_secret_value() == "s"


class Revealing(BaseModel):
    password: Annotated[SecretStr, PlainSerializer(lambda one: one.get_secret_value(), when_used="json")]


def test_a_secret_that_its_own_serializer_writes_comes_out() -> None:
    value = Revealing(password=SecretStr("s"))
    assert handled(Revealing, value) == value


class Base(BaseModel):
    name: str


class More(Base):
    size: int = 0


class Same(Base):
    def shout(self) -> str:
        return self.name.upper()


class Shelf(BaseModel):
    items: list[Base]


@dataclasses.dataclass
class Plain:
    name: str


@dataclasses.dataclass
class PlainMore(Plain):
    size: int = 0


@pytest.mark.parametrize(
    ("carried", "value", "lost"),
    [
        (Base, More(name="a", size=3), "size of More"),
        (Shelf, Shelf(items=[More(name="a", size=3)]), r"items\.0: .*size of More"),
        (list[Base], [Base(name="a"), More(name="a")], r"1: .*size of More"),
        (Plain, PlainMore("a", 3), "size of PlainMore"),
        (Base | None, More(name="a", size=3), "size of More"),
    ],
    ids=str,
)
def test_row_a1_a_subclass_with_more_fields_is_refused_at_the_send(carried: Any, value: Any, lost: str) -> None:
    with pytest.raises(TypeError, match=f"channel in: .*{lost}"):
        handled(carried, value)


def test_a_subclass_without_more_fields_is_carried() -> None:
    assert handled(Base, Same(name="a")) == Base(name="a")


def times_100(number: int) -> int:
    return number * 100


class Growing(BaseModel):
    number: Annotated[int, AfterValidator(times_100)]


class Stripped(BaseModel):
    name: Annotated[str, AfterValidator(str.strip)]


def test_row_a1_a_validator_that_changes_twice_is_refused_at_the_send() -> None:
    for value in (Growing(number=1), {"number": 1}):
        with pytest.raises(TypeError, match=r"channel in: .*number: .* is changed .* validator"):
            handled(Growing, value)
    assert handled(Growing, Growing(number=0)) == Growing(number=0), "this one it leaves as it is"
    assert handled(Stripped, {"name": " a "}) == Stripped(name="a")


class Counted(BaseModel):
    model_config = ConfigDict(extra="forbid")
    names: list[str]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def count(self) -> int:
        return len(self.names)


class Kept(BaseModel):
    name: str
    _cache: dict[str, int] = PrivateAttr(default_factory=dict)


def test_what_a_model_computes_and_forbids_is_refused_and_what_it_hides_does_not_count() -> None:
    with pytest.raises(TypeError, match=r"channel in: .*count: Extra inputs are not permitted"):
        handled(Counted, Counted(names=["a"]))
    value = Kept(name="a")
    value._cache["a"] = 1
    assert handled(Kept, value).name == "a"


class Tagged(BaseModel):
    tags: list[str] = []
    kind: Literal["order"] = "order"


class Listed(BaseModel):
    names: list[str]
    count: int = 0


class Sized(BaseModel):
    size: int = Field(gt=0)
    name: str = ""


@pytest.mark.parametrize(
    ("carried", "value", "said"),
    [
        (Base, Base.model_construct(name=5), "name: Input should be a valid string"),
        (Base, Base.model_construct(), "name: Field required"),
        (Tagged, Tagged.model_construct(kind="invoice"), "kind: Input should be 'order'"),
        (Listed, Listed.model_construct(names=None), "names: Input should be a valid array"),
        (Listed, Listed.model_construct(names=["a"], count=None), "count: Input should be a valid integer"),
        (Sized, Sized.model_construct(size=-1), "size: Input should be greater than 0"),
        (Plain, Plain(name=None), "name: Input should be a valid string"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_an_object_that_its_own_type_would_not_take_is_refused(carried: Any, value: Any, said: str) -> None:
    with pytest.raises(TypeError, match=f"channel in: .*{said}"):
        handled(carried, value)


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
