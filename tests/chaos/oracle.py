"""The oracle of chaos: compares the clients' answers with the store and the broker at rest."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.app import DEEDS, DID, FAILED, OUTLIVED, STAGES, app
from tests.services.pair import Takeover


class Loss(NamedTuple):
    """What a failover cost of what was acknowledged."""

    orders: int
    seconds: float
    """From the first acknowledgement that the new primary does not know to the death of the old one: the RPO."""


class Verdict(NamedTuple):
    """What became of a run's messages. The first six must be empty."""

    lost: list[str]
    """Accepted, said the client or the inbox, and an effect is missing."""
    twice: list[str]
    """One message took effect more than once."""
    again: list[str]
    """Several messages had the same effect for an order: a handler's messages were sent under other ids once more."""
    unfounded: list[str]
    """An effect is there of an order that must have none, or that the store does not know; what a handler's thread
    wrote after it; or a message saw what another one had set."""
    invented: list[str]
    """The client was told that nothing was accepted, and it was."""
    wrong: list[str]
    """What else does not add up."""
    told: Counter[str]
    """What clients were told: ok, fail, unknown."""
    accepted: int
    needed: int
    """Runs of handlers, if nothing had broken."""
    runs: int
    failed: int
    """Runs that failed as ordered."""
    moved: int
    """Messages, of orders whose handlers never fail, that ran in several processes: taken over from one by another."""
    charged: int
    """Attempts that the store counts of what took effect, beyond the runs that failed as ordered."""
    losses: list[Loss]
    """By failover."""
    did: Counter[str]
    """What orders have done on their way, which may go wrong -> how often a run really did it."""
    outlived: int
    """Forked children whose worker had died before them."""

    @property
    def repeated(self) -> int:
        """Runs of handlers beyond those that failed and the one that each message needs: redelivered, rolled back."""
        return self.runs - self.needed - self.failed

    @property
    def faults(self) -> list[str]:
        return [*self.lost, *self.twice, *self.again, *self.unfounded, *self.invented, *self.wrong]


def judge(store: Any, depths: Mapping[str, int], folder: Path, takeovers: Sequence[Takeover] = ()) -> Verdict:
    """Compare everything. Nothing runs any more. `takeovers`: of the database, in their order."""
    told: dict[str, str] = {}
    deeds: dict[str, str] = {}
    times: dict[str, float] = {}
    for log in folder.glob("client-*"):
        for line in log.read_text().splitlines():
            name, deeds[name], told[name], time = line.split()
            times[name] = float(time)
    with store.unit("") as unit:
        applied = Counter(name for (name,) in unit.read("SELECT name FROM effects"))
        inbox = {(flow, id): int(state) for flow, id, state in unit.read("SELECT flow, id, state FROM flowkit_inbox")}
        (left,) = unit.read("SELECT count(*) FROM flowkit_messages")[0]
        (attempts,) = unit.read("SELECT sum(attempts) FROM flowkit_inbox WHERE state = 1")[0]
        objects = {key for (key,) in unit.read("SELECT key FROM flowkit_objects")}
        whole = [("ok",)] if store.dialect.name != "sqlite" else unit.read("PRAGMA integrity_check")
    accepted = {id for flow, id in inbox if flow == "channel:orders"}
    rejects = {name for name in accepted if deeds[name] == "reject"}
    wanted = {f"{stage} {name}" for name in accepted - rejects for stage in STAGES}
    effects = Counter(name.rpartition(" ")[0] for name in applied)
    missing = {name for name, said in told.items() if said == "ok"} - accepted
    letters = store.dead_letters.read(store.dead_letters.select())

    wrong = []
    dead = Counter((one.flow, one.message.id, one.reason) for one in letters)
    if dead != Counter(("chaos.accept", name, "rejected") for name in rejects):
        wrong.append(f"dead letters: {[(one.flow, one.message.id, one.reason) for one in letters][:5]}, and more")
    if objects != {f"audit {name}" for name in accepted - rejects}:
        wrong.append("objects differ from effects")
    for flow, balance in store.ledger.balances().items():
        if not balance.balanced or balance.pending:
            wrong.append(f"{flow}: {balance}")
    if left:
        wrong.append(f"{left} message rows are left")
    if any(depths.values()):
        wrong.append(f"the broker still holds {depths}")
    if any(state not in (1, 2) for state in inbox.values()):
        wrong.append("open inbox rows")
    if whole != [("ok",)]:
        wrong.append(f"integrity check: {whole}")
    runs = {file.name: Counter(file.read_text().split("\n")[:-1]) for file in folder.glob("runs-*")}
    failed = sum(found.pop(FAILED, 0) for found in runs.values())
    outlived = sum(found.pop(OUTLIVED, 0) for found in runs.values())
    did = Counter({deed: sum(found.pop(f"{DID} {deed}", 0) for found in runs.values()) for deed in DEEDS})
    places = Counter(run for found in runs.values() for run in found)
    return Verdict(
        lost=sorted([*(f"order {name}" for name in missing), *(wanted - effects.keys())]),
        twice=sorted(name for name, count in applied.items() if count > 1),
        again=sorted(name for name, count in effects.items() if count > 1),
        unfounded=sorted(effects.keys() - wanted),
        invented=sorted(name for name, said in told.items() if said == "fail" and name in accepted),
        wrong=wrong,
        told=Counter(told.values()),
        accepted=len(accepted),
        needed=applied.total() + len(objects) + len(letters),
        runs=sum(found.total() for found in runs.values()),
        failed=failed,
        moved=sum(
            many > 1 and deeds[run.split()[1]] not in ("fail", "swallow", "close") for run, many in places.items()
        ),
        charged=int(attempts or 0) - failed,
        losses=losses([times[name] for name in missing], takeovers),
        did=did,
        outlived=outlived,
    )


def losses(lost: Iterable[float], takeovers: Sequence[Takeover]) -> list[Loss]:
    """What each takeover cost, of acknowledgements of these times: each was lost by the next one. A client notes its
    acknowledgement a moment later than it got it, but none is given between a death and the promotion after it."""
    left, found = sorted(lost), []
    for died, promoted in takeovers:
        here = [time for time in left if time < promoted]
        left = left[len(here) :]
        found.append(Loss(len(here), max(0.0, died - here[0]) if here else 0.0))
    return found


FLOWS = list(app.flows)
