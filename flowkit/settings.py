"""Settings: what can be set by the environment, and which names there are mistakes."""

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from flowkit.errors import ConfigError
from flowkit.url import is_unquoted, mask, scheme

PREFIX = "FLOWKIT_"
OWN = ("FLOWKIT_SLOTS", "FLOWKIT_HTTP_SOCKET", "FLOWKIT_SUPERVISOR")
"""The names by which a supervisor tells its workers something."""
LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")
"""Kubernetes gives such names to all pods of a namespace where a service has a name that begins like a setting."""
SAME, NEAR = 0.8, 0.6
"""The share of two names that is the same, if one is the other with a mistake in it, and if it may be meant."""

Url = Annotated[str, Field(repr=False)]
"""A URL, which may have a password: no text of the settings shows it."""


class Settings(BaseSettings):
    """The settings. The environment variable of a field is FLOWKIT_ and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    database_url: Annotated[Url, Field(description="Store and default queue: sqlite:///… or postgresql://…")] = (
        "sqlite:///flowkit.db"
    )
    broker_url: Annotated[Url, Field(description="Broker that carries messages; empty: the database does")] = ""
    broker_management_url: Annotated[Url, Field(description="RabbitMQ's management API, to check policies")] = ""
    drain_url: Annotated[Url, Field(description="Broker to leave: workers empty it and send nothing there")] = ""
    threads: Annotated[int, Field(ge=1, le=64, description="Threads that run handlers in one worker process")] = 4
    lease: Annotated[
        float, Field(ge=1, description="Seconds until a worker's lease of messages expires, unless renewed")
    ] = 30.0
    group: Annotated[str, Field(description="Group: its instances are active, or on standby, together")] = ""
    group_lease: Annotated[
        float, Field(ge=1, description="Seconds until the lease of a group expires, unless renewed")
    ] = 3.0
    site: Annotated[str, Field(description="Label that says where the instance is, for flowkit status")] = ""
    version: Annotated[str, Field(description="Version of the app: see flowkit rollout")] = ""
    log_format: Annotated[Literal["text", "json"], Field(description="Lines of text, or one JSON object a line")] = (
        "text"
    )
    log_level: Annotated[str, Field(description="Lowest level that is logged: DEBUG, INFO, WARNING or ERROR")] = "INFO"

    @classmethod
    def read(cls) -> "Settings":
        """Return the settings of the environment.

        Raises ConfigError that names a variable whose value is wrong, or whose name is nearly that of a setting."""
        for name, meant in unknown(os.environ).items():
            if meant and os.environ.get(meant) is None and similar(name, [meant], SAME):
                raise ConfigError(f"{name} is no setting, and would do nothing; write {meant}")
        try:
            found = cls()
        except ValidationError as error:  # never of a URL, which may have a password: any text is one
            faults = [f"FLOWKIT_{str(one['loc'][0]).upper()}: {one['input']!r}: {one['msg']}" for one in error.errors()]
            raise ConfigError("; ".join(faults)) from None
        for name in (name for name in cls.model_fields if name.endswith("_url") and is_unquoted(getattr(found, name))):
            raise ConfigError(
                f"{PREFIX}{name.upper()}: its user or password has a character that ends it; write @ as %40, / as %2F, "
                ": as %3A, ? as %3F, # as %23 and % as %25"
            )
        _check_database(found.database_url)
        return found


def _check_database(url: str) -> None:
    """Refuse an environment that names no database, or one that is in the memory of each process: a message that is
    accepted there is lost. Raises ConfigError."""
    if not url:
        raise ConfigError(
            "FLOWKIT_DATABASE_URL is empty; unset it, or write sqlite:///path/to/file.db or "
            "postgresql://user:password@host/database"
        )
    path = url.partition("?")[0].partition("://")[2].partition("/")[2]
    if scheme(url).partition("+")[0] == "sqlite" and path in ("", ":memory:"):
        raise ConfigError(
            f"FLOWKIT_DATABASE_URL is {mask(url)}, which names no file: what is in memory ends with its process; write "
            "sqlite:///file.db, with three slashes, or sqlite:////folder/file.db"
        )


def unknown(environment: Iterable[str]) -> dict[str, str]:
    """The names in an environment that begin like those of settings and are none, each with the nearest setting; empty
    where none is near."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    strange = [
        name
        for name in sorted(environment)
        if name.upper().startswith(PREFIX) and name.upper() not in (*known, *OWN) and not LINK.search(name)
    ]
    return {name: similar(name, known, NEAR) for name in strange}


def doubts() -> list[str]:
    """Warnings of names in the environment that look like settings and are none."""
    return [
        f"{name} is no setting, and does nothing" + (f"; the nearest one is {nearest}" if nearest else "")
        for name, nearest in unknown(os.environ).items()
    ]


def similar(name: str, known: Iterable[str], likeness: float) -> str:
    """Which of these names the prefix of settings is before is most like a name; empty where none is."""
    ends = [one.removeprefix(PREFIX) for one in known]
    found = get_close_matches(name.upper().removeprefix(PREFIX), ends, 1, likeness)
    return PREFIX + found[0] if found else ""
