"""The options of `flowkit run`."""

from typing import NamedTuple

from flowkit import duration
from flowkit.errors import ConfigError
from flowkit.settings import Settings

SPARE = "standby"
"""The group of instances that are meant as spare ones."""


class Options(NamedTuple):
    """How an app is run."""

    workers: int
    flows: list[str]
    until_idle: bool
    grace: str
    http: str
    admin: str
    agent: str
    drain: str
    standby: str
    group: str
    site: str
    version: str

    @property
    def grace_seconds(self) -> float:
        """How long workers may take to finish. Raises DefinitionError."""
        return duration.seconds(self.grace, "--grace")

    @property
    def drain_seconds(self) -> float:
        """How long the end of the service is announced before it. Raises DefinitionError."""
        return duration.seconds(self.drain, "--drain")

    def over(self, settings: Settings) -> Settings:
        """The settings, with what is given here."""
        given = {name: getattr(self, name) for name in ("group", "site", "version") if getattr(self, name)}
        if self.standby != "none" and not (self.group or settings.group):
            given["group"] = SPARE
        return settings.model_copy(update=given)

    def check(self, settings: Settings) -> None:
        """Raise ConfigError where options contradict each other, and DefinitionError where one is no duration."""
        grace = self.grace_seconds
        if self.http and self.drain_seconds > grace:
            raise ConfigError(f"--drain {self.drain} is longer than --grace {self.grace}; drain is a part of it")
        if self.admin and not self.http:
            raise ConfigError("--admin is served beside --http; give both, or leave --admin out")
        if settings.group and self.until_idle:
            raise ConfigError(
                "--until-idle ends what is idle, and a spare instance always is; leave out one of the two"
            )
