"""Retries: how often a message that fails is tried, and how long it waits between."""

from flowkit import duration
from flowkit.errors import DefinitionError


class RetryPolicy:
    """How often a failing message is tried, and how long it waits between: first, first × factor, … up to most.

    `jitter` spreads each wait by that share of it, so that messages that failed together do not return together. The
    default waits for 39 minutes in all, 31 at least: an outage of what a handler calls costs no message.
    """

    def __init__(
        self,
        attempts: int = 16,
        first: duration.Duration = "1s",
        factor: float = 2.0,
        most: duration.Duration = "5m",
        jitter: float = 0.2,
    ) -> None:
        if attempts < 1 or factor < 1 or not 0 <= jitter < 1:
            raise DefinitionError(
                f"RetryPolicy(attempts={attempts}, factor={factor}, jitter={jitter}): attempts and factor are at "
                "least 1, jitter is at least 0 and below 1"
            )
        self.attempts = attempts
        self.first = duration.seconds(first, "RetryPolicy(first=)")
        self.factor = factor
        self.most = duration.seconds(most, "RetryPolicy(most=)")
        self.jitter = jitter

    def delay(self, failures: int, random: float) -> float:
        """Seconds to wait after so many failures; `random` is in [0, 1)."""
        wait = min(self.most, self.first * self.factor ** min(failures - 1, 64))
        return wait * (1 + self.jitter * (2 * random - 1))

    @property
    def longest(self) -> float:
        """The most seconds that all waits together can take."""
        return sum(self.delay(n, 1.0) for n in range(1, self.attempts))

    def __str__(self) -> str:
        if self.attempts == 1:
            return "no retries"
        waits = f"{duration.text(self.first)} × {self.factor:g} up to {duration.text(self.most)}"
        return f"{self.attempts} attempts, {waits}"
