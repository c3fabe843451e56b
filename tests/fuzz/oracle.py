"""The oracle of the fuzz: every input has exactly one outcome, and the ledger counts it."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flowkit import FlowKitError
from tests.fuzz.app import digest
from tests.fuzz.corpus import FLOWS, KINDS, Door, Input, Raw

ENDS = ("applied", "dead", "duplicate", "refused")


class Record(NamedTuple):
    """What the store says of one message: it took effect, or it is a dead letter."""

    flow: str
    source: str
    id: str
    channel: str
    digest: str
    end: str


class Verdict(NamedTuple):
    """What became of a corpus."""

    faults: list[str]
    ends: Counter[tuple[str, str]]
    """(kind of input, end) -> how many."""
    reasons: Counter[str]
    """Of refusals, and of dead letters."""

    def totals(self) -> dict[str, int]:
        """How many came to each end."""
        return {end: sum(count for (_, one), count in self.ends.items() if one == end) for end in ENDS}

    def vacuous(self) -> list[str]:
        """Kinds of input, and ends, that did not occur."""
        occurred = {name for pair in self.ends for name in pair}
        return [name for name in (*KINDS, *ENDS) if name not in occurred]


class Told(NamedTuple):
    """What the producer of an input was told."""

    id: str = ""
    """Under which it was accepted, at the door."""
    refused: str = ""
    ours: bool = True
    """Whether the refusal is FlowKit's own and says what is wrong, or that of a database whose table it was."""


def refusal(error: Exception, channel: str) -> Told:
    """How the door refused a message. A bare error of some library below is none of FlowKit's."""
    ours = isinstance(error, FlowKitError) or (type(error) is TypeError and str(error).startswith(f"channel {channel}"))
    return Told(refused=f"{type(error).__name__}: {error}"[:300], ours=ours and bool(str(error)))


def identities(inputs: Sequence[Input], told: Sequence[Told]) -> dict[tuple[str, object], list[Input]]:
    """What was not refused, by what takes effect once."""
    found: dict[tuple[str, object], list[Input]] = defaultdict(list)
    for one, answer in zip(inputs, told, strict=True):
        if not answer.refused:
            found[one.channel, one.group if isinstance(one, Raw) else answer.id].append(one)
    return found


def judge(store: Any, inputs: Sequence[Input], told: Sequence[Told], depths: Mapping[str, int]) -> Verdict:
    """Compare what was put in with what is there. Nothing runs any more."""
    verdict = Verdict([], Counter(), Counter())
    found = records(store, verdict)
    forged = _account(inputs, told, found, verdict)
    _audit(store, len(found), forged, depths, verdict.faults)
    return verdict


def records(store: Any, verdict: Verdict) -> list[Record]:
    """Every effect and every dead letter."""
    with store.unit("") as unit:
        effects = [Record(*(*json.loads(name), "applied")) for (name,) in unit.read("SELECT name FROM effects")]
    letters = store.dead_letters.read(store.dead_letters.select())
    for one in letters:
        verdict.reasons[f"dead: {one.reason}: {one.error.split(':', 1)[0]}"] += 1
        if not one.reason or not one.error:
            verdict.faults.append(f"a dead letter without a reason: {one!r:.300}")
    return effects + [
        Record(one.flow, one.message.source, one.message.id, one.message.channel, digest(one.message.body), "dead")
        for one in letters
    ]


def _account(inputs: Sequence[Input], told: Sequence[Told], found: Sequence[Record], verdict: Verdict) -> Counter[str]:
    """Give each input its end. Returns by flow how many were forged: they took effect, and nobody accepted them."""
    raws = {digest(one.body): one for one in inputs if isinstance(one, Raw)}
    channels = {flow: channel for channel, flow in FLOWS.items()}
    ends: dict[tuple[str, object], list[Record]] = defaultdict(list)
    forged: Counter[str] = Counter()
    for record in found:
        raw = raws.get(record.digest)
        ends[channels[record.flow], raw.group if raw else record.id].append(record)
        if raw and record.channel != raw.channel:
            forged[record.flow] += 1
    for one, answer in zip(inputs, told, strict=True):
        if answer.refused:
            _refuse(one, answer, verdict)
    for key, together in identities(inputs, told).items():
        _end(together, ends.pop(key, []), verdict)
    verdict.faults.extend(f"nobody sent {record}" for left in ends.values() for record in left)
    return forged


def _refuse(one: Input, answer: Told, verdict: Verdict) -> None:
    verdict.ends[one.kind, "refused"] += 1
    verdict.reasons[f"refused: {answer.refused.split(':', 1)[0]}"] += 1
    if not answer.ours:
        verdict.faults.append(f"refused with a bare error: {answer.refused}: {one!r:.300}")
    if one.sure:
        verdict.faults.append(f"refused, and nothing is wrong with it: {answer.refused}: {one!r:.300}")


def _end(together: Sequence[Input], found: Sequence[Record], verdict: Verdict) -> None:
    """Inputs of one identity: one of them took effect or is dead, and the others are duplicates."""
    if len(found) != 1:
        verdict.faults.append(f"{'lost' if not found else f'{len(found)} times'}: {found} {together[0]!r:.500}")
        return
    (record,) = found
    first = next((one for one in together if isinstance(one, Door) or digest(one.body) == record.digest), together[0])
    for one in together:
        verdict.ends[one.kind, record.end if one is first else "duplicate"] += 1
    if first.sure and first.sure != record.end:
        verdict.faults.append(f"{record.end} instead of {first.sure}: {first!r:.500}")


def _audit(store: Any, ended: int, forged: Mapping[str, int], depths: Mapping[str, int], faults: list[str]) -> None:
    """The ledger, the inbox, the rows and the queues at rest.

    What claims to be FlowKit's own was counted by who staged it; a forger counts nothing, so that is added here.
    """
    for flow, balance in store.ledger.balances().items():
        whole = balance._replace(accepted=balance.accepted + forged.get(flow, 0))
        if not whole.balanced or whole.pending:
            faults.append(f"the ledger of {flow} does not add up with {forged.get(flow, 0)} forged: {balance}")
    with store.unit("") as unit:
        left = unit.read("SELECT * FROM flowkit_messages")
        states = Counter(
            int(state) for flow, state in unit.read("SELECT flow, state FROM flowkit_inbox") if flow in FLOWS.values()
        )
    if left or any(depths.values()):
        faults.append(f"{len(left)} rows are left, at the broker {dict(depths)}; the first rows: {left[:3]!r:.900}")
    if set(states) - {1, 2} or states.total() != ended:
        faults.append(f"the inbox knows {dict(states)} of {ended} ends")
