"""Staging: the rows that record the outcomes of a batch, in the same transaction as the claims of the batch."""

from collections.abc import Mapping, Sequence

from flowkit.engine.dead_letter import letter
from flowkit.engine.item import Item
from flowkit.model.outbox import Context
from flowkit.ports import Copy, Dead, Deferred, Done, Letter, Outcome, Reopening, Retried, Tally
from flowkit.publisher import accepted, address


class Rows:
    """Collects the rows of one batch: outgoing copies, retries, dead letters, and claims to reopen. Writes nothing."""

    def __init__(self, context: Context, routes: Mapping[str, Sequence[str]]) -> None:
        """`routes`: the subscribers of each channel that the flow sends to."""
        self._context = context
        self._routes = routes
        self._fresh: list[Copy] = []
        self._again: list[Copy] = []
        self._applied = 0
        self.reopened: list[Reopening] = []
        self.letters: list[Letter] = []

    def add(self, item: Item) -> None:
        """Add the rows of one message after its outcome is decided. The claim of a message without an outcome is opened
        again, so that the message can run later."""
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
        """Add a copy of the next generation, and open the inbox for that copy. A retry adds an attempt, a deferral does
        not."""
        delivery, generation = item.delivery, item.delivery.generation + 1
        attempts = (item.claim.attempts if item.claim else 0) + isinstance(outcome, Retried)
        self.reopened.append(Reopening(delivery.identity, generation, attempts))
        self._again.append(
            Copy(self._context.ids(), delivery.message, delivery.flow, generation, attempts, outcome.after)
        )

    @property
    def copies(self) -> list[Copy]:
        """The copies to stage now, and to publish after the commit."""
        return [*self._fresh, *self._again]

    def tallies(self, flow: str, items: Sequence[Item], reused: int) -> dict[str, Tally]:
        """The numbers to add to the ledger, by flow. For `flow`: the outcomes of `items`. For every subscriber: the
        accepted copies. `reused`: the number that `find_reused` returned."""
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
    """Whether the store first records a foreign message with this outcome. The message then counts as accepted."""
    return isinstance(outcome, Done | Retried | Deferred | Dead)
