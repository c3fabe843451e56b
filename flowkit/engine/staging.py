"""Staging: the rows that record the outcomes of a batch, in the transaction of its claims."""

from collections.abc import Mapping, Sequence

from flowkit.engine.dead_letter import letter
from flowkit.engine.item import Item
from flowkit.model.outbox import Context
from flowkit.ports import Copy, Dead, Deferred, Done, Letter, Outcome, Reopening, Retried, Tally
from flowkit.publisher import accepted, address


class Rows:
    """The rows of one batch: what its messages send, try again, leave behind and leave open."""

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
        """Add the rows of one message, which has its outcome. One without an outcome leaves its claim open."""
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
        """A copy with the next generation, for which the inbox is open. Only a retry is an attempt."""
        delivery, generation = item.delivery, item.delivery.generation + 1
        attempts = (item.claim.attempts if item.claim else 0) + isinstance(outcome, Retried)
        self.reopened.append(Reopening(delivery.identity, generation, attempts))
        self._again.append(
            Copy(self._context.ids(), delivery.message, delivery.flow, generation, attempts, outcome.after)
        )

    @property
    def copies(self) -> list[Copy]:
        """The copies to be staged, and published after the commit."""
        return [*self._fresh, *self._again]

    def tallies(self, flow: str, items: Sequence[Item], reused: int) -> dict[str, Tally]:
        """What the ledger counts for each flow: of `flow`, the batch with these items; of others, accepted copies."""
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
    """Whether this outcome is the first that the store records of a foreign message."""
    return isinstance(outcome, Done | Retried | Deferred | Dead)
