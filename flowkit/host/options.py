"""The options of `flowkit run`."""

from typing import NamedTuple

from flowkit import duration
from flowkit.errors import ConfigError
from flowkit.settings import Settings

SPARE = "standby"
"""The group of instances that start with --standby and without --group."""


class Options(NamedTuple):
    """The options, as `flowkit run` parsed them."""

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
        """Longest time in seconds for workers to finish. Raises DefinitionError."""
        return duration.seconds(self.grace, "--grace")

    @property
    def drain_seconds(self) -> float:
        """Seconds for which a stopping instance reports itself not ready before it refuses clients. Raises
        DefinitionError."""
        return duration.seconds(self.drain, "--drain")

    def over(self, settings: Settings) -> Settings:
        """The settings, with the options in place of those that they name."""
        given = {name: getattr(self, name) for name in ("group", "site", "version") if getattr(self, name)}
        if self.standby != "none" and not (self.group or settings.group):
            given["group"] = SPARE
        return settings.model_copy(update=given)

    def check(self, settings: Settings) -> None:
        """Raise ConfigError if options contradict each other, and DefinitionError if a duration is malformed."""
        grace = self.grace_seconds
        if self.http and self.drain_seconds > grace:
            raise ConfigError(f"--drain {self.drain} is longer than --grace {self.grace}; drain is a part of it")
        if self.admin and not self.http:
            raise ConfigError("--admin is served beside --http; give both, or leave --admin out")
        if settings.group and self.until_idle:
            raise ConfigError(
                "--until-idle ends an idle instance, and a spare instance is always idle; leave out one of the two"
            )
