"""Bodies: what a channel accepts comes out as it went in, or is refused at the door by name."""

import dataclasses
from typing import Annotated, Any, Literal

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

from flowkit import App, DefinitionError
from tests.support.bodies import Base, Named, handled


class Aliased(BaseModel):
    number: int = Field(alias="orderNumber")


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
