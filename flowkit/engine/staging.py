"""Staging: the rows that record the outcomes of a batch, in the transaction of its claims."""

from collections.abc import Mapping, Sequence

from flowkit.engine.dead_letter import letter
from flowkit.engine.item import Item
from flowkit.model.outbox import Context
from flowkit.ports import Copy, Dead, Deferred, Done, Letter, Outcome, Reopening, Retried, Tally
from flowkit.publisher import accepted, address


class Rows:
    """The rows of one batch: copies of what its messages sent, retries, dead letters, and inbox rows to be reopened."""

    def __init__(self, context: Context, routes: Mapping[str, Sequence[str]]) -> None:
        """`routes`: the subscribers of the channels that the flow sends to."""
        self._context = context
        self._routes = routes
        self._fresh: list[Copy] = []
        self._again: list[Copy] = []
        self._applied = 0
        self.reopened: list[Reopening] = []
        self.letters: list[Letter] = []

    def add(self, item: Item) -> None:
        """Add the rows of one message by its outcome. A message without an outcome has its claim reopened."""
        outcome, delivery = item.outcome, item.delivery
        match outcome:
            case Done():
                self._applied += 1
                for outgoing in item.outbox.sent if item.outbox else ():
                    self._fresh += address(outgoing, self._routes, self._context)
            case Retried() | Deferred():
                self._try_again(item, outcome)
            case Dead():
                self.letters.append(letter(item, outcome))
            case None if item.claimed and item.claim:
                self.reopened.append(
                    Reopening(delivery.identity, delivery.generation, item.claim.attempts, item.claim.suspect)
                )

    def _try_again(self, item: Item, outcome: Retried | Deferred) -> None:
        """Add a copy of the next generation, and reopen the inbox for it. Only a retry counts as an attempt."""
        delivery, generation = item.delivery, item.delivery.generation + 1
        attempts = (item.claim.attempts if item.claim else 0) + isinstance(outcome, Retried)
        self.reopened.append(Reopening(delivery.identity, generation, attempts))
        self._again.append(
            Copy(self._context.ids(), delivery.message, delivery.flow, generation, attempts, outcome.after)
        )

    @property
    def copies(self) -> list[Copy]:
        """The copies that are staged, and published after the commit."""
        return [*self._fresh, *self._again]

    def tallies(self, flow: str, items: Sequence[Item], reused: int) -> dict[str, Tally]:
        """Return the numbers that the ledger adds for each flow: for `flow` those of the batch with these items, for
        other flows the copies that they accepted."""
        tallies = accepted(self._fresh)
        mine = tallies.get(flow, Tally())
        arrived = [item.delivery for item in items if item.delivery.foreign and _recorded(item.outcome)]
        tallies[flow] = mine._replace(
            accepted=mine.accepted + len(arrived),
            applied=self._applied,
            dead=len(self.letters),
            unidentified=sum(one.unidentified for one in arrived),
            reused=reused,
        )
        return {name: tally for name, tally in tallies.items() if any(tally)}


def _recorded(outcome: Outcome | None) -> bool:
    """Return whether the store records a foreign message for the first time by this outcome."""
    return isinstance(outcome, Done | Retried | Deferred | Dead)
