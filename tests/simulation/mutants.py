"""Deliberate faults of the engine. The oracle must catch each; a surviving one shows that the oracle is blind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count as counting
from typing import Any
from unittest.mock import patch

from flowkit import publisher as publishing
from flowkit.engine import pipeline as piping
from flowkit.engine import relay as relaying
from flowkit.engine import triage as triaging
from flowkit.engine.item import Spoiled
from flowkit.engine.pipeline import Pipeline
from flowkit.engine.versions import VersionedConsumer, Versions
from flowkit.errors import CommitUnknown, StoreUnavailable
from flowkit.host.supervisor import Supervisor
from flowkit.ports import Claim, Copy, Delivery, Receipt, Tally
from flowkit.store import handler_watch as watching
from flowkit.store.access import Access
from flowkit.store.clock import Hands
from flowkit.store.dialect import classify
from flowkit.store.fleet import Fleet
from flowkit.store.objects import SqlObjects
from flowkit.store.queue import Queue
from flowkit.store.residue import Residue
from flowkit.store.sqlite import SqliteDialect
from flowkit.store.statements import Statements
from flowkit.store.suspects import Suspects
from flowkit.store.unit import SqlUnit
from tests.simulation.broker import Link
from tests.simulation.database import Dialect
from tests.simulation.run import Shape

Mutant = Callable[[], Any]
MUTANTS: dict[str, Mutant] = {}
"""What is wrong -> opens a context in which it is."""
SHAPES: dict[str, Shape] = {}
"""What is wrong -> what the runs are about that show it."""


def mutant_of(shape: Shape) -> Callable[[Callable[[], Iterator[None]]], None]:
    def keep(make: Callable[[], Iterator[None]]) -> None:
        MUTANTS[make.__name__] = contextmanager(make)
        SHAPES[make.__name__] = shape

    return keep


mutant = mutant_of(Shape.PLAIN)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> Any:
    """Replace a method by `around(original, self, …)`."""
    original = getattr(owner, name)

    def replaced(self: Any, *arguments: Any, **options: Any) -> Any:
        return around(original, self, *arguments, **options)

    return patch.object(owner, name, replaced)


def _statement(name: str, change: Callable[[str], str]) -> Any:
    """Change a statement of every store that is opened."""
    assert name in Statements.__dataclass_fields__, name

    def around(original: Any, self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.statements = replace(self.statements, **{name: change(getattr(self.statements, name))})

    return _wrap(Dialect, "__init__", around)


@contextmanager
def _another(unit: SqlUnit) -> Iterator[SqlUnit]:
    """A unit of work for the same lane, in a transaction of its own."""
    dialect, clock, ids = unit._dialect, unit._clock, unit._ids
    try:
        pooled = unit.engine.raw_connection()
    except Exception as error:
        raise classify(dialect, error, own=True) from error
    other = SqlUnit(
        dialect, pooled, "", unit._deadline, unit._lane, clock=clock, ids=ids, version="", fence=unit._fence
    )
    try:
        yield other
    finally:
        other.end()


# ------------------------------------------------------------ acknowledging and claiming


@mutant
def acknowledged_before_the_commit() -> Iterator[None]:
    def commit(original: Any, self: Pipeline, unit: Any, items: Any) -> Any:
        self.consumer.settle([item.delivery for item in items if item.handled])
        return original(self, unit, items)

    with _wrap(Pipeline, "commit", commit):
        yield


@mutant
def acknowledged_with_the_batch_though_not_handled() -> Iterator[None]:
    with patch.object(piping, "finished", lambda items: [item.delivery for item in items]):
        yield


@mutant
def duplicates_are_never_acknowledged() -> Iterator[None]:
    def settled(items: Any) -> Any:
        return [item.delivery for item in items if item.outcome is not None and item.claim is not None]

    with patch.object(piping, "finished", settled):
        yield


@mutant
def claimed_in_a_transaction_of_its_own() -> Iterator[None]:
    def claim(original: Any, self: SqlUnit, deliveries: Any) -> Any:
        claims = original(self, deliveries)
        self._dialect.commit(self._driver, None)
        self._begun = False
        self.begin()
        return claims

    with _wrap(SqlUnit, "claim", claim):
        yield


@mutant
def the_inbox_is_not_asked() -> Iterator[None]:
    def claim(original: Any, self: SqlUnit, deliveries: Any) -> Any:
        original(self, deliveries)
        return {one.identity: Claim(one.attempts) for one in deliveries}

    with _wrap(SqlUnit, "claim", claim):
        yield


@mutant
def the_inbox_forgets_at_once() -> Iterator[None]:
    def forget(text: str) -> str:
        return text.replace("changed < CAST(? AS bigint)", "CAST(? AS bigint) IS NOT NULL")

    with _statement("purge_inbox", forget):
        yield


@mutant
def claims_of_what_was_not_handled_stay() -> Iterator[None]:
    def reopen(original: Any, self: SqlUnit, rows: Any) -> None:
        original(self, [one for one in rows if one.generation])

    with _wrap(SqlUnit, "reopen", reopen):
        yield


@mutant
def a_mistake_is_lived_through() -> Iterator[None]:
    calls = counting(1)

    def settle(original: Any, self: Pipeline, items: Any) -> None:
        if next(calls) % 5 == 0:
            raise TypeError("a mistake of the engine")
        original(self, items)

    with _wrap(Pipeline, "settle", settle):
        yield


# ------------------------------------------------------------ effects


@mutant
def effects_of_a_failed_handler_commit() -> Iterator[None]:
    def handle(original: Any, self: Pipeline, unit: Any, item: Any, state: Any, careful: bool) -> None:
        try:
            original(self, unit, item, state, careful)
        except Spoiled as spoiled:
            item.error = spoiled.__cause__

    with _wrap(Pipeline, "_handle_one", handle):
        yield


@mutant
def an_unknown_commit_counts_as_done() -> Iterator[None]:
    def commit(original: Any, self: SqlUnit) -> None:
        try:
            original(self)
        except CommitUnknown:
            self._begun = False

    with _wrap(SqlUnit, "commit", commit):
        yield


@mutant
def what_is_sent_is_staged_after_the_commit() -> Iterator[None]:
    def stage(original: Any, self: SqlUnit, copies: Any, lease: float = 0.0) -> None:
        self.late = (copies, lease)  # type: ignore[attr-defined]

    def commit(original: Any, self: SqlUnit) -> None:
        original(self)
        copies, lease = self.__dict__.pop("late", ((), 0.0))
        if copies:
            with _another(self) as unit:
                keep(unit, copies, lease)
                original(unit)

    keep = SqlUnit.stage
    with _wrap(SqlUnit, "stage", stage), _wrap(SqlUnit, "commit", commit):
        yield


@mutant
def the_ledger_is_written_apart() -> Iterator[None]:
    def count(original: Any, self: SqlUnit, tallies: Mapping[str, Tally]) -> None:
        self.tallies = tallies  # type: ignore[attr-defined]

    def commit(original: Any, self: SqlUnit) -> None:
        original(self)
        tallies = self.__dict__.pop("tallies", None)
        if tallies:
            with _another(self) as unit:
                keep(unit, tallies)
                original(unit)

    keep = SqlUnit.count
    with _wrap(SqlUnit, "count", count), _wrap(SqlUnit, "commit", commit):
        yield


@mutant
def what_is_sent_leaves_before_the_commit() -> Iterator[None]:
    def stage(original: Any, self: Pipeline, unit: Any, items: Any) -> Any:
        copies = original(self, unit, items)
        self.transport.send([one for one in copies if not one.delay])
        return copies

    with _wrap(Pipeline, "stage", stage):
        yield


# ------------------------------------------------------------ retries and dead letters


@mutant
def a_retry_has_a_fresh_id() -> Iterator[None]:
    def stage(original: Any, self: SqlUnit, copies: Sequence[Copy], lease: float = 0.0) -> None:
        fresh = [
            one._replace(message=one.message._replace(id=self._ids())) if one.generation else one for one in copies
        ]
        original(self, fresh, lease)

    with _wrap(SqlUnit, "stage", stage):
        yield


@mutant
def a_retry_keeps_its_generation() -> Iterator[None]:
    def same(one: Any) -> Any:
        return one._replace(generation=0)

    def reopen(original: Any, self: SqlUnit, rows: Any) -> None:
        original(self, [same(one) for one in rows])

    def stage(original: Any, self: SqlUnit, copies: Any, lease: float = 0.0) -> None:
        original(self, [same(one) for one in copies], lease)

    with _wrap(SqlUnit, "reopen", reopen), _wrap(SqlUnit, "stage", stage):
        yield


@mutant
def a_retry_leaves_the_inbox_done() -> Iterator[None]:
    with patch.object(SqlUnit, "reopen", lambda self, rows: None):
        yield


def _hasty(hurried: Callable[[Copy], bool]) -> Any:
    """Copies of this kind are due at once."""

    def stage(original: Any, self: SqlUnit, copies: Sequence[Copy], lease: float = 0.0) -> None:
        original(self, [one._replace(delay=0.0) if hurried(one) else one for one in copies], lease)

    return _wrap(SqlUnit, "stage", stage)


@mutant
def a_delay_is_ignored() -> Iterator[None]:
    with _hasty(lambda copy: copy.generation == 0):
        yield


@mutant
def a_retry_does_not_wait() -> Iterator[None]:
    with _hasty(lambda copy: copy.generation > 0):
        yield


@mutant
def a_failure_is_dropped_in_the_end() -> Iterator[None]:
    with patch.object(SqlUnit, "bury", lambda self, letters: None):
        yield


@mutant
def an_outage_counts_as_an_attempt() -> Iterator[None]:
    with patch.object(SqlUnit, "ended", lambda self, error: None):
        yield


@mutant
def what_runs_alone_is_not_noted() -> Iterator[None]:
    with patch.object(Suspects, "begin_solo", lambda self, suspect, worker: None):
        yield


@mutant_of(Shape.SUSPECTS)
def who_runs_alone_is_taken_for_dead() -> Iterator[None]:
    with patch.object(Fleet, "is_gone", lambda self, worker: True):
        yield


@mutant_of(Shape.SUSPECTS)
def a_worker_forgets_what_it_ran_alone() -> Iterator[None]:
    def begin_solo(original: Any, self: Suspects, suspect: Any, worker: str) -> None:
        original(self, suspect, f"{worker}, no, {self._database.ids()}")

    with _wrap(Suspects, "begin_solo", begin_solo):
        yield


@mutant_of(Shape.SUSPECTS)
def every_death_is_an_attempt_of_all() -> Iterator[None]:
    def charge(original: Any, self: Supervisor, victim: Any, worker: str) -> None:
        for _ in range(12):
            self._store.suspects.charge(victim.identity, worker, late=True)

    with _wrap(Supervisor, "_charge", charge):
        yield


# ------------------------------------------------------------ sending


@mutant
def an_unconfirmed_copy_counts_as_sent() -> Iterator[None]:
    def send(original: Any, self: Link, copies: Any) -> Any:
        return [Receipt(one.copy, True) if not one.reason else one for one in original(self, copies)]

    with _wrap(Link, "send", send):
        yield


@mutant
def mandatory_is_off() -> Iterator[None]:
    def send(original: Any, self: Link, copies: Any) -> Any:
        return [Receipt(one.copy, True) if one.reason else one for one in original(self, copies)]

    with _wrap(Link, "send", send):
        yield


@mutant
def the_relay_does_not_send() -> Iterator[None]:
    with patch.object(relaying.Relay, "step", lambda self: False):
        yield


@mutant
def leases_never_end() -> Iterator[None]:
    def lease(original: Any, self: Queue, flow: str, limit: int, worker: str, seconds: float) -> Any:
        return original(self, flow, limit, "nobody", 1e8)

    with _wrap(Queue, "lease", lease):
        yield


def tokenless(name: str) -> Any:
    """A statement of a holder of leases does not ask whether they are still its own."""
    return _statement(name, lambda text: text.replace("deliveries = ?", "? IS NOT NULL"))


@mutant
def a_stale_holder_removes() -> Iterator[None]:
    def blind(text: str) -> str:
        return text.replace(
            "(copy, deliveries) IN (SELECT value ->> 0, CAST(value ->> 1 AS integer)", "(copy) IN (SELECT value ->> 0"
        )

    with _statement("remove", blind):
        yield


# ------------------------------------------------------------ versions and groups


@mutant_of(Shape.VERSIONS)
def a_candidate_does_not_rest_until_the_others_conform() -> Iterator[None]:
    with patch.object(Versions, "rests", property(lambda self: False)):
        yield


@mutant_of(Shape.VERSIONS)
def a_worker_says_that_it_conforms_when_it_does_not() -> Iterator[None]:
    def conforms(original: Any, self: VersionedConsumer) -> bool:
        original(self)
        return True

    with _wrap(VersionedConsumer, "conforms", conforms):
        yield


@mutant_of(Shape.VERSIONS)
def a_worker_that_does_not_conform_is_not_waited_for() -> Iterator[None]:
    with _statement("rollout", lambda text: text.replace("worker.epoch < rolled.epoch", "worker.epoch < 0")):
        yield


@mutant_of(Shape.VERSIONS)
def the_share_before_a_change_is_forgotten() -> Iterator[None]:
    def theirs(original: Any, self: Versions, delivery: Delivery) -> Any:
        before = self.rollout
        self.rollout = before._replace(before=0) if before is not None else None
        try:
            return original(self, delivery)
        finally:
            self.rollout = before

    with _wrap(Versions, "theirs", theirs):
        yield


@mutant_of(Shape.VERSIONS)
def what_is_passed_on_is_acknowledged_first() -> Iterator[None]:
    def pass_on(original: Any, self: VersionedConsumer, place: Any, theirs: Any) -> None:
        place.settle(theirs)
        original(self, place, theirs)

    with _wrap(VersionedConsumer, "_pass_on", pass_on):
        yield


@mutant_of(Shape.VERSIONS)
def what_the_candidate_had_is_left_there() -> Iterator[None]:
    with _wrap(Versions, "places", lambda original, self, flow: original(self, flow)[:1]):
        yield


@mutant_of(Shape.GROUPS)
def commits_of_a_group_are_not_fenced() -> Iterator[None]:
    with patch.object(SqliteDialect, "fence", lambda self, cursor, key: None):
        yield


# ------------------------------------------------------------ what handlers do


@mutant
def a_swallowed_error_is_not_noticed() -> Iterator[None]:
    with patch.object(Access, "_check", lambda self: None), patch.object(SqlUnit, "broken", lambda self: None):
        yield


@mutant
def what_a_handler_kept_is_still_good_after_it() -> Iterator[None]:
    with patch.object(Access, "close", lambda self: None):
        yield


@mutant
def what_a_statement_leaves_behind_is_not_seen() -> Iterator[None]:
    with patch.object(watching, "residue", lambda statement: Residue.NONE):
        yield


@mutant
def a_connection_that_dies_is_always_the_handlers_fault() -> Iterator[None]:
    with patch.object(triaging, "DEATHS", 1):
        yield


@mutant_of(Shape.CLOCK)
def the_clock_is_trusted() -> Iterator[None]:
    with patch.object(Hands, "look", lambda self: None):
        yield


@mutant_of(Shape.CONTENTION)
def an_object_is_put_whatever_became_of_it_since_it_was_read() -> Iterator[None]:
    def put(original: Any, self: SqlObjects, key: str, value: Any) -> None:
        self._read.clear()
        original(self, key, value)

    with _wrap(SqlObjects, "put", put):
        yield


@mutant_of(Shape.CONTENTION)
def a_collision_is_a_failure() -> Iterator[None]:
    with patch.object(triaging, "SOLO_TRIES", 0), patch.object(triaging, "SOLO_BATCHES", 1):
        yield


# ------------------------------------------------------------ accepting


@mutant
def an_id_is_accepted_twice() -> Iterator[None]:
    def stage(unit: Any, messages: Any, context: Any, optional: Any = frozenset()) -> Any:
        routes = unit.subscribers({one.message.channel for one in messages})
        copies = [copy for one in messages for copy in publishing.address(one, routes, context)]
        unit.claim([Delivery(one.message, f"channel:{one.message.channel}") for one in messages])
        unit.stage(copies)
        unit.count(publishing.accepted(copies))
        return {copy.flow for copy in copies}

    with patch.object(publishing, "stage", stage):
        yield


@mutant
def another_body_under_a_known_id_is_taken_for_a_resend() -> Iterator[None]:
    with _wrap(SqlUnit, "digests", lambda original, self, deliveries: {}):
        yield


@mutant
def the_answer_comes_before_the_commit() -> Iterator[None]:
    def accept(original: Any, self: Any, messages: Any, optional: Any) -> Any:
        try:
            return original(self, messages, optional)
        except (CommitUnknown, StoreUnavailable):
            return set()

    with _wrap(publishing.Publisher, "_accept", accept):
        yield


@mutant
def an_unknown_outcome_is_told_as_a_failure() -> Iterator[None]:
    def accept(original: Any, self: Any, messages: Any, optional: Any) -> Any:
        try:
            return original(self, messages, optional)
        except CommitUnknown as error:
            raise StoreUnavailable(str(error)) from error

    with _wrap(publishing.Publisher, "_accept", accept):
        yield
