"""The service level agreement as a file, `sla.toml`: the promised service, and the nodes that have to provide it."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from flowkit import duration
from flowkit.errors import ConfigError, DefinitionError

WEEK_SECONDS = 7 * 86400.0
TEMPLATE = """\
# The promised service. All numbers are examples.
availability = 99.9          # percent of the time with the minimum service or better

[normal]                     # when nothing is broken
tps = 1000                   # requests a second
response = "250ms"           # the longest response time ...
percentile = 99              # ... of this percentage of the requests

[minimum]                    # during any of the planned failures
tps = 100                    # requests a second
response = "2s"              # the longest response time
at_most = "10m"              # how long the service may be below normal ...
per = "7d"                   # ... in each period of this length

[node]                       # one instance of the application
tps = 750                    # requests a second within the response time: flowkit sla measure finds it
fails_every = "30d"          # mean time between two failures
repaired_in = "15m"          # mean time until it is repaired

[tiers.broker]               # each other service that a request needs: one table each; leave out those you lack
nodes = 3                    # how many there are
needed = 2                   # how many of them have to be up
availability = 99.9          # percent of the time that one of them is up, in place of fails_every and repaired_in

[tiers.database]             # the same for the database
nodes = 2                    # a primary and its standby
needed = 1                   # one of them is enough
fails_every = "90d"          # mean time between two failures
repaired_in = "30s"          # mean time until the standby has taken over
"""
"""An example agreement, which `flowkit sla init` writes."""


def _seconds(value: object) -> float:
    try:
        return duration.seconds(value, "this duration")
    except DefinitionError as error:
        raise ValueError(str(error)) from None


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
"""A duration of the file, such as "250ms" or "30d", in seconds."""
Rate = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
"""Requests or messages per second."""
Percent = Annotated[float, Field(gt=0, lt=100, allow_inf_nan=False)]


class Part(BaseModel):
    """A table of the file. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Normal(Part):
    """The service while nothing is broken."""

    tps: Rate
    response: Seconds
    """Longest response time in seconds, at `percentile`."""
    percentile: Percent = 99.0


class Minimum(Part):
    """The service during any of the planned failures."""

    tps: Rate
    response: Seconds
    at_most: Seconds
    """Longest time in seconds below the normal service in each period `per`."""
    per: Seconds = WEEK_SECONDS


class Failures(Part):
    """The availability of one node: in percent, or as mean time between failures and mean time to repair in seconds."""

    availability: Percent | None = None
    fails_every: Seconds | None = None
    repaired_in: Seconds | None = None

    @model_validator(mode="after")
    def _told_once(self) -> Self:
        pair = (self.fails_every, self.repaired_in)
        if (self.availability is None) == (None in pair) or (self.availability is not None and pair != (None, None)):
            raise ValueError("write availability = 99.9, or both fails_every and repaired_in")
        return self

    @property
    def up(self) -> float:
        """The probability that one node is up, in (0, 1): `availability`, or MTBF / (MTBF + MTTR)."""
        if self.fails_every is not None and self.repaired_in is not None:
            return self.fails_every / (self.fails_every + self.repaired_in)
        assert self.availability is not None
        return self.availability / 100


class Node(Failures):
    """One instance of the application."""

    tps: Rate
    """Requests a second that one instance sustains within the response time: `flowkit sla measure` finds them."""


class Tier(Failures):
    """Another service that every request needs: the broker, the database, the load balancer."""

    nodes: Annotated[int, Field(ge=1, le=1000)] = 1
    needed: Annotated[int, Field(ge=1)] = 1
    """Nodes that have to be up: 2 of a RabbitMQ cluster of 3, 1 of a PostgreSQL pair."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.needed > self.nodes:
            raise ValueError(f"needed = {self.needed} of nodes = {self.nodes}; it is never up")
        return self


class Agreement(Part):
    """The whole file."""

    availability: Percent
    """Percent of the time with the minimum service or better."""
    normal: Normal
    minimum: Minimum
    node: Node
    tiers: dict[Annotated[str, Field(min_length=1, max_length=64)], Tier] = {}

    @model_validator(mode="after")
    def _without_contradiction(self) -> Self:
        normal, minimum = self.normal, self.minimum
        if minimum.tps > normal.tps:
            raise ValueError(f"minimum.tps = {minimum.tps:g} is more than normal.tps = {normal.tps:g}")
        if minimum.response < normal.response:
            raise ValueError("minimum.response is shorter than normal.response")
        if minimum.at_most > minimum.per:
            raise ValueError("minimum.at_most is longer than the period, minimum.per")
        return self


def read(path: Path) -> Agreement:
    """Read an agreement. Blocks. Raises ConfigError, which names each wrong key."""
    try:
        return Agreement.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML file: {error}") from None
    except ValidationError as error:
        wrong = "; ".join(_said(one) for one in error.errors())
        raise ConfigError(f"{path}: {wrong}") from None


def _said(error: Any) -> str:
    """The text of one validation error: the key, and what is wrong."""
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "extra_forbidden":
        return f"{place} is not a key of sla.toml"
    why = error["msg"].removeprefix("Value error, ")
    return f"{place}: {why}" if place else why
