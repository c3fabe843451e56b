"""Types of bodies."""

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)

from flowkit import App
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


class Named(BaseModel):
    model_config = ConfigDict(validate_by_name=True)
    number: int = Field(alias="orderNumber")

    @classmethod
    def of(cls, number: int) -> "Named":
        return cls.model_validate({"number": number})


class Base(BaseModel):
    name: str
