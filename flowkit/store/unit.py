"""The unit of work: one transaction for the inbox, the handlers' effects, the outgoing messages and the ledger."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from sqlalchemy.pool import PoolProxiedConnection

from flowkit.ports import Claim, Clock, Copy, Delivery, Fence, Identity, Ids, Letter, Reopening, Tally
from flowkit.store.access import Access
from flowkit.store.dialect import Dialect
from flowkit.store.encoding import MICROSECOND, envelope, names
from flowkit.store.handling import HandledTransaction
from flowkit.store.tables import DEAD, OPEN


class SqlUnit(HandledTransaction):
    """Implements ports.Unit on one connection."""

    def __init__(
        self,
        dialect: Dialect,
        pooled: PoolProxiedConnection,
        flow: str,
        deadline: float,
        lane: str,
        *,
        clock: Clock,
        ids: Ids,
        version: str,
        fence: Fence | None = None,
        begun: bool = False,
    ) -> None:
        """`version` is the version of the app, which its dead letters record."""
        super().__init__(dialect, pooled, flow, deadline, clock, fence, begun)
        self._lane = lane
        self._ids = ids
        self._version = version

    def access(self, careful: bool = False) -> Access:
        return Access(self, careful)

    # ------------------------------------------------------------ inbox

    def look(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        found = {
            (flow, source, id): (state, generation, attempts, suspect)
            for flow, source, id, state, generation, attempts, suspect, *_ in self._look(
                one.identity for one in deliveries
            )
        }
        claims = {}
        for one in deliveries:
            state, generation, attempts, suspect = found.get(one.identity, (OPEN, 0, one.attempts, 0))
            if state == OPEN and generation <= one.generation:
                claims[one.identity] = Claim(attempts, bool(suspect))
        return claims

    def claim(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        # One row for each identity, with its highest generation; sorted, so that two claims never deadlock.
        wanted: dict[Identity, tuple[int, int, str]] = {}
        for one in deliveries:
            known = wanted.get(one.identity)
            if known is None or known[:2] < (one.generation, one.attempts):
                wanted[one.identity] = (one.generation, one.attempts, one.digest)
        rows = [(*identity, *wanted[identity]) for identity in sorted(wanted)]
        self.begin()
        return {
            (flow, source, id): Claim(attempts, bool(suspect), at)
            for flow, source, id, attempts, suspect, at in self.read(self.sql.claim, (to_json(rows).decode(),))
        }

    def holds(self, claims: Mapping[Identity, Claim]) -> bool:
        written = {(flow, source, id): at for flow, source, id, *_, at in self._look(claims)}
        return all(written.get(identity) == claim.at for identity, claim in claims.items())

    def digests(self, deliveries: Sequence[Delivery]) -> dict[Identity, str]:
        rows = self._look(one.identity for one in deliveries)
        return {(flow, source, id): digest for flow, source, id, *_, digest, _ in rows}

    def _look(self, identities: Iterable[Identity]) -> list[Any]:
        """Return the rows of the inbox for these identities."""
        return self.read(self.sql.look, (to_json(sorted({*identities})).decode(),))

    def reopen(self, rows: Sequence[Reopening]) -> None:
        self.write(
            self.sql.set_inbox,
            [(OPEN, one.generation, one.attempts, int(one.suspect), *one.identity) for one in rows],
        )

    def bury(self, letters: Sequence[Letter]) -> None:
        self.write(
            self.sql.set_inbox,
            [(DEAD, one.delivery.generation, one.attempts, 0, *one.delivery.identity) for one in letters],
        )
        self.write(
            self.sql.bury,
            [
                (
                    self._ids(),
                    one.delivery.flow,
                    *envelope(one.delivery.message),
                    one.delivery.generation,
                    one.attempts,
                    one.reason,
                    one.error,
                    one.stack,
                    self._version,
                )
                for one in letters
            ],
        )

    # ------------------------------------------------------------ messages

    def subscribers(self, channels: Collection[str]) -> Mapping[str, Sequence[str]]:
        routes: dict[str, list[str]] = {}
        if channels:
            for channel, flow in self.read(self.sql.subscribers, (names(sorted(channels)),)):
                routes.setdefault(channel, []).append(flow)
        return routes

    def stage(self, copies: Sequence[Copy], lease: float = 0.0) -> None:
        self._waiting += self._dialect.staging(
            [
                (
                    one.row,
                    one.flow,
                    *envelope(one.message),
                    one.generation,
                    one.attempts,
                    int(bool(lease) and not one.delay),
                    int((one.delay or lease) * MICROSECOND),
                    self._lane[:36] if lease and not one.delay else None,
                )
                for one in copies
            ]
        )

    def remove(self, rows: Collection[tuple[str, int]]) -> None:
        if rows:
            copies = to_json(sorted(rows)).decode()
            self.write(self.sql.remove, [(copies, copies)])

    def count(self, tallies: Mapping[str, Tally]) -> None:
        self.write(self.sql.count, [(flow, self._lane, *tallies[flow]) for flow in sorted(tallies)])

    def witness(self) -> None:
        if self.sql.witness:
            self.write(self.sql.witness, [()])
