"""The seams of FlowKit: what an engine needs of a store and a transport, and what both hand to it.

Everything blocks unless it says otherwise. A Unit and a Source belong to one thread at a time; Store and Transport
may be called from any thread. Who opens something closes it.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

from flowkit.message import Message

T = TypeVar("T")


class Clock(Protocol):
    """Time, passed in so that tests can turn it."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds from a fixed point, never backwards: for time boxes and deadlines."""


# ---------------------------------------------------------------- what came, and what came of it

Identity = tuple[str, str, str]
"""(flow, source, id): what takes effect once."""


class Delivery(NamedTuple):
    """A message as received: one addressed copy in the hands of one lane."""

    message: Message
    flow: str
    generation: int = 0
    """How often it was sent again on purpose. Its inbox row expects this number or a lower one."""
    attempts: int = 0
    """Failures recorded when it was staged. The inbox row, where there is one, knows better."""
    deliveries: int = 1
    """How often it was handed out. With `row` it is the lease token: a stale one changes nothing."""
    staged: float = 0.0
    """When this generation was staged, in seconds since the epoch, by the database's clock."""
    row: str | None = None
    """Its message row, where the transport works on rows; that row is removed in the unit of work."""
    tag: Any = None
    """The transport's own handle to settle it."""
    foreign: bool = False
    """Whether another program sent it: it is accepted when it is first recorded, not when it was sent."""
    unidentified: bool = False
    """Whether it came without an id: it got a fresh one, as it does each time that it arrives."""
    digest: str = ""
    """Of its body, where FlowKit did not choose its id, so that another message may have the same."""
    refused: str = ""
    """Why it is not the message that it claims to be. It is foreign then, and no handler runs for it."""

    @property
    def identity(self) -> "Identity":
        return self.flow, self.message.source, self.message.id


class Done(NamedTuple):
    """The handler's effects, the inbox row and the outgoing messages are committed."""


class Duplicate(NamedTuple):
    """It was already applied, is dead, or was sent again since: nothing to do."""


class Retried(NamedTuple):
    """It failed and waits as a row for its next attempt."""

    after: float
    error: BaseException


class Dead(NamedTuple):
    """It is a dead letter."""

    reason: str
    error: BaseException | None = None


class Forwarded(NamedTuple):
    """It was handed to another flow under the same identity."""

    to: str


class Deferred(NamedTuple):
    """It waits as a row until this version of the app, or another, can read it. No attempt."""

    after: float
    error: BaseException


class Expired(NamedTuple):
    """An explicit policy ended it unhandled."""


REFUSED = "refused"
"""The reason of a dead letter that is not the message that it claims to be."""
Outcome = Done | Duplicate | Retried | Dead | Forwarded | Deferred | Expired


# ---------------------------------------------------------------- what is written


EXCHANGE = "exchange:"
"""What is addressed to `exchange:CHANNEL` goes to the exchange of a shared channel, for other programs."""


CANDIDATE = "@candidate"
"""What is addressed to `FLOW@candidate` is for the version of the app that is rolled out. It is that flow's all the
same: its inbox, its ledger, its dead letters."""


class Copy(NamedTuple):
    """One addressed copy of a message, to be staged as a row."""

    row: str
    message: Message
    flow: str
    generation: int = 0
    attempts: int = 0
    delay: float = 0.0
    staged: float = 0.0
    """When its row was staged, in seconds since the epoch; 0: just now."""

    @property
    def exchange(self) -> str:
        """The shared channel whose exchange it is for; empty for a flow's copy."""
        return self.flow.removeprefix(EXCHANGE) if self.flow.startswith(EXCHANGE) else ""


class Claim(NamedTuple):
    """What the inbox knows of a message that may run now."""

    attempts: int = 0
    suspect: bool = False
    """It may have killed its process, so it runs alone."""
    at: int = 0
    """Microseconds of the database's clock as it was made, which tell it from another worker's claim of the same
    message; 0 where it was only looked for."""


class Reopening(NamedTuple):
    """An inbox row set open again, expecting `generation` next."""

    identity: Identity
    generation: int
    attempts: int
    suspect: bool = False


class Letter(NamedTuple):
    """A dead letter: the delivery, why, and after how many attempts."""

    delivery: Delivery
    reason: str
    error: str
    stack: str
    attempts: int


class Receipt(NamedTuple):
    """What a transport says of a copy that it was given to carry away."""

    copy: Copy
    confirmed: bool
    reason: str = ""


class WorkerInfo(NamedTuple):
    """Who a worker is."""

    id: str
    app: str
    host: str
    pid: int
    group: str = ""
    """Of the instances that are active, or spare, together; empty where there are no spare ones."""
    site: str = ""
    version: str = ""


PAUSED, DRAINED, WORKERS, LANES = DIRECTIONS = ("paused", "drained", "workers", "lanes")
"""What the fleet can be directed to: flows, or all of an app, begin nothing; they get nothing over HTTP; each instance
of an app has so many worker processes; each worker has so many lanes of a flow."""
NORMAL, MINIMUM = "normal", "minimum"
"""So many workers of an app take its normal service, and its minimum service: with fewer, flows rest."""


class Rollout(NamedTuple):
    """Which versions of an app run side by side.

    The candidate handles `weight` percent of the messages, by the hash of their keys, and the baseline all others.
    While it is not `settled`, some workers still go by the weight `before`, or finish what they began by it.
    """

    baseline: str
    candidate: str = ""
    """The version that is rolled out, or was rolled out last; empty if none ever was."""
    weight: int = 0
    before: int = 0
    epoch: int = 0
    """Raised by each change."""
    age: float = 0.0
    """Seconds since the last change."""
    settled: bool = True

    @property
    def going_on(self) -> bool:
        return self.weight > 0

    @property
    def reach(self) -> int:
        """Of so many percent the candidate may have messages in hand."""
        return self.weight if self.settled else max(self.weight, self.before)

    def start(self, version: str, weight: int) -> "Rollout":
        """A version gets so many percent."""
        return self._replace(candidate=version, weight=weight, before=self.reach)

    def shift(self, weight: int) -> "Rollout":
        """The candidate gets so many percent."""
        return self._replace(weight=weight, before=self.reach)

    def promote(self, version: str) -> "Rollout":
        """A version is the baseline, and has all messages."""
        return self._replace(baseline=version, candidate=version, weight=0, before=self.reach)

    def roll_back(self) -> "Rollout":
        """The baseline has all messages again."""
        return self._replace(weight=0, before=self.reach)


class Figures(NamedTuple):
    """What a worker handled since the last change of its app's rollout, at most in the last minute."""

    handled: int = 0
    failed: int = 0
    """Of these: attempts that failed, and what this version could not read."""
    p99: float = 0.0
    """Seconds from when a worker received a message to the commit of what came of it, at 99 %."""


class Standing(NamedTuple):
    """Which group of an app's instances is active, for how many seconds from now, and the token of that time."""

    group: str
    token: int
    seconds: float


class Fence(NamedTuple):
    """What a process commits counts only while its group is active under this token."""

    app: str
    group: str
    token: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is called in the store."""
        return f"active:{self.app}", self.group, self.token


class Retention(NamedTuple):
    """What an app keeps for how long, in seconds."""

    app: str
    flows: Collection[str]
    channels: Collection[str]
    inbox: float
    dead_letters: float


class Pending(NamedTuple):
    """Messages that are not at their end: due or in work now, and waiting for a later time."""

    now: int
    later: int


class Tally(NamedTuple):
    """Counts of addressed copies, added to the ledger."""

    accepted: int = 0
    applied: int = 0
    dead: int = 0
    discarded: int = 0
    expired: int = 0
    unidentified: int = 0
    """Of the accepted ones, those that came without an id."""
    reused: int = 0
    """Duplicates that are none: their body is another one than that of the message that has their id."""


class Shared(NamedTuple):
    """A channel that other programs use too, and those of our flows that receive from it."""

    channel: str
    flows: Sequence[str]
    optional: bool
    """Whether its messages may go nowhere."""


class Asked(NamedTuple):
    """Names a request that waits for a reply: each route and each principal has ids of its own."""

    route: str
    principal: str
    id: str


class Key(NamedTuple):
    """A secret of the store. Messages that travel by a broker are signed with it. Its text does not show it."""

    id: str
    secret: bytes
    valid: bool = True
    """Whether messages that it signed are taken. One that is not valid recognises events of this store."""

    def __repr__(self) -> str:
        return f"Key({self.id!r})"


class Ring(NamedTuple):
    """The keys of the store."""

    keys: Sequence[Key]
    """The first one signs; all that are valid verify."""
    lenient: bool = False
    """Whether unsigned messages are taken too: they come from the version before."""


class Objects(Protocol):
    """Injected into handlers: a durable key-value store of the app, written in the handler's transaction.

    Values are what JSON can say. Each call is a statement in the transaction, and blocks for it. In an `async def`
    handler `get` is awaited, and what is put or deleted waits for the handler's end.
    A `begin_nested()` of the handler's session or connection undoes the puts and deletes inside of it when it is
    rolled back.

    No update of a key is lost: where a handler has read a key and another message changes it before the commit, its
    `put` or `delete` of that key raises StoreConflict, and the message runs again, which is no attempt. Other keys that
    the handler has only read may change meanwhile.
    """

    def get(self, key: str) -> Any:
        """The value of a key; None where there is none, or its time is over."""

    def put(self, key: str, value: Any, ttl: str | float | None = None) -> None:
        """Set a key, for a duration such as "1h" if one is given. Raises TypeError for what would not
        come out of JSON as it went in, such as a tuple, a Decimal or a model."""

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""


class UnitOfWork(Protocol):
    """Injected into `async def` handlers that need the database: one transaction, run where it may block."""

    def run(self, function: Callable[[Any, Any], T]) -> Awaitable[T]:
        """Await `function(session, outbox)`, run on a thread in the unit of work of this message, and its result.

        When it returns, the message is applied: its claim, what the function wrote and what it sent are committed
        together. When it raises, all is undone, and it may be run again. What the function gets is an ORM session and
        an Outbox. Raises FlowKitError when the unit of work is committed already, and TypeError when the function is an
        `async def` or a generator, or returns what nobody has run yet.
        """


# ---------------------------------------------------------------- the ports


class Access(Protocol):
    """The objects that one handler gets of a unit of work: a context around its call.

    At its end what the handler wrote is sent. It raises then if the handler caught an error of the database: going on
    would commit half of its work. Whatever it gave raises FlowKitError when it is used later.
    """

    used: bool
    """Whether the handler touched the transaction."""
    undone: bool
    """Whether all that it wrote is undone at its end, though the unit goes on. Else the unit has to be undone."""

    def give(self, wanted: type) -> object:
        """The object for a parameter of this type, one of `Store.injects`. It cannot end the transaction."""

    def finish(self) -> None:
        """Send what the handler wrote, and put back the settings of the transaction that it changed."""

    def reply(self, asked: Asked, reply: bytes, seconds: float) -> None:
        """Keep the reply to a request, as JSON, for so many seconds. Call it once the handler is finished."""

    def __enter__(self) -> "Access": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Unit(Protocol):
    """A unit of work: one transaction on one connection. It begins with the first claim, or the first use that a
    handler makes of what it was given. What is written may wait for the commit, and fail there.

    Any call may raise StoreConflict or StoreUnavailable; the transaction is then gone.
    """

    opening: Callable[[], None] | None
    """Called once, when a handler's first use begins the transaction."""

    together: bool
    """Whether handlers' plain INSERTs may wait and go together. Whose is refused is then not known: the batch is run
    again, message by message."""

    waited: float
    """Seconds for which the beginning of the transaction waited."""

    settings: bool
    """Whether handlers change settings where nobody sees it, so that they are always put back."""

    alone: bool
    """Whether one message only runs in it. Else a statement raises Apart that leaves something which another message
    would meet: a setting, a role, a name."""

    def look(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        """Which of these could be claimed now, by a plain read outside any transaction. Decides nothing."""

    def claim(self, deliveries: Sequence[Delivery]) -> dict[Identity, Claim]:
        """Claim these in the inbox. Those missing from the answer are duplicates."""

    def holds(self, claims: Mapping[Identity, Claim]) -> bool:
        """Whether all of these very claims are in the inbox: the transaction that made them was committed."""

    def digests(self, deliveries: Sequence[Delivery]) -> dict[Identity, str]:
        """The digests with which these identities were claimed; empty where there was none."""

    def subscribers(self, channels: Collection[str]) -> Mapping[str, Sequence[str]]:
        """The flows subscribed to each of these channels."""

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""

    @property
    def shut(self) -> bool:
        """Whether this process itself has closed the connection: a handler did."""

    def check(self) -> None:
        """Raise TransactionEnded if a handler ended the transaction by the driver. Undoes what handlers did."""

    def access(self, careful: bool = False) -> Access:
        """The objects for the next handler. `careful`: in a savepoint, so that just it is undone when it fails."""

    def broken(self) -> BaseException | None:
        """Why the transaction cannot go on, by a local look; else None. TransactionEnded if somebody ended it."""

    def ended(self, error: BaseException) -> BaseException | None:
        """What ended the transaction, if a handler's error comes of that: Apart, StoreConflict, StoreUnavailable or
        TransactionEnded. None for a failure of the handler's own, be it of another database that it spoke to."""

    def flush(self) -> None:
        """Send what is pending to the database: the handlers' objects, and what was written."""

    def reopen(self, rows: Sequence[Reopening]) -> None:
        """Set these inbox rows open."""

    def bury(self, letters: Sequence[Letter]) -> None:
        """Set these inbox rows dead and write the dead letters."""

    def stage(self, copies: Sequence[Copy], lease: float = 0.0) -> None:
        """Write message rows: due after their delay, or born leased to the sender for `lease` seconds."""

    def remove(self, rows: Collection[tuple[str, int]]) -> None:
        """Remove message rows by (row, deliveries): those that still have that token."""

    def count(self, tallies: Mapping[str, Tally]) -> None:
        """Add to the ledger, by flow."""

    def witness(self) -> None:
        """Let the commit wait until what this unit saw is as durable as what it wrote: others' commits can be seen
        before every standby that they wait for has them."""

    def commit(self) -> None:
        """Commit. Raises CommitUnknown, StoreConflict, TransactionEnded, or the database's own refusal."""


class Queue(Protocol):
    """Message rows, taken under leases."""

    def lease(self, flow: str, limit: int, worker: str, seconds: float) -> list[Delivery]:
        """Take up to `limit` due rows of a flow, in a short committed transaction of its own: none beyond the one whose
        body brings them to BATCH_BYTES."""

    def renew(self, rows: Collection[tuple[str, int]], seconds: float) -> None:
        """Hold these leased rows for `seconds` more."""

    def release(self, rows: Collection[tuple[str, int]]) -> None:
        """Make these leased rows due now."""

    def park(self, rows: Mapping[tuple[str, int], str], seconds: float) -> None:
        """Make these rows due again after `seconds`, with the reason that kept them."""

    def unpark(self, flows: Collection[str]) -> None:
        """Make the parked rows of these flows due now."""

    def due(self, flows: Collection[str] | None = None) -> set[str]:
        """Which of these flows, or of all that are subscribed, have a due row."""


class Subscribers(Protocol):
    """The flows that are subscribed, and the apps that only publish."""

    def add(self, subscriptions: Mapping[str, str]) -> None:
        """Record flow -> channel. They stay until they are removed by command."""

    def channels(self) -> Mapping[str, str]:
        """flow -> channel, of every app."""

    def announce(self, app: str) -> None:
        """Record that an app without flows publishes here: no other program may then have its name."""

    def publishers(self) -> Sequence[str]:
        """The apps that were announced."""


class Answers(Protocol):
    """Replies to requests, and states of messages, for clients."""

    def replies(self, app: str, requests: Collection[Asked]) -> Mapping[Asked, bytes]:
        """The replies to these requests of an app, as JSON. A request that has none has no entry."""

    def states(self, identities: Collection[Identity]) -> Mapping[Identity, str]:
        """What the inbox knows of these: accepted, applied or dead. What did not come to a flow yet has no entry."""


class Directions(Protocol):
    """Settings that operators make for flows and apps while they run."""

    def set(self, what: str, names: Collection[str], value: int | None) -> None:
        """Direct the whole fleet: set something of these flows or apps, one of the DIRECTIONS; None: set it no more."""

    def read(self) -> Mapping[tuple[str, str], int]:
        """What is set: (what, name) -> value."""


class Uptime(Protocol):
    """The times at which apps gave at least their minimum service."""

    def note(self, app: str) -> None:
        """An app gives at least its minimum service now."""

    def read(self, app: str, seconds: float) -> Sequence[tuple[float, float]]:
        """From and until when it did, in seconds before now, in order: as far back as this, and the last one that began
        before."""


class Groups(Protocol):
    """The active group of instances of each app."""

    def stand(self, app: str, group: str, seconds: float, ready: bool) -> Standing | None:
        """Which group of the app is active; None: none ever was. If it is this one, it stays so for `seconds` more. If
        the time of the last one is over and this one is `ready`, it is active from now on, and what members of others
        held is free; but no group is while workers without one were heard of in the last `seconds`. These are the group
        "", which only keeps others away: its time is over when it does no more.
        """

    def step_down(self, app: str, group: str, silent: float) -> None:
        """Let the time of this group be over, unless a worker of it was heard of in the last `silent` seconds."""

    def standing(self, app: str) -> Standing | None:
        """The same, by a look that changes nothing."""


class Ledger(Protocol):
    """Counts of messages that are not at their end."""

    def pending(self, flows: Collection[str]) -> Pending:
        """How many messages of these flows are not at their end."""

    def unfinished(self, flows: Collection[str]) -> int:
        """How many messages of these flows were accepted and are not at their end, by the ledger."""


class Suspects(Protocol):
    """Messages that may have killed the worker that ran them."""

    def charge(self, identity: Identity, worker: str, late: bool) -> None:
        """A worker died with this message in flight: make it a suspect. It was an attempt if the message ran alone, or
        was past its deadline (`late`); unless another worker runs it alone since then, and counted that."""

    def begin_solo(self, suspect: Delivery, worker: str) -> None:
        """A suspect is about to run alone in this worker. If a worker that is dead had begun to run it alone, that run
        was an attempt. To be called before the run; a second call changes nothing."""

    def end_solo(self, identity: Identity, worker: str) -> None:
        """The run alone in this worker is over and does not count: the message is given back."""


class Fleet(Protocol):
    """The workers."""

    def join(self, worker: WorkerInfo, epoch: int = 0) -> None:
        """Record a worker, and the epoch of the rollout that it goes by. Hold its liveness lock for as long as this
        process lives."""

    def leave(self, worker: str) -> None:
        """Forget a worker that ended in order."""

    def beat(self, worker: str, state: str, epoch: int = 0, figures: Figures | None = None) -> None:
        """Say that a worker is alive, which epoch of its app's rollout it goes by, and what it handled lately; free the
        leases of those that are dead."""

    def ready(self, app: str) -> int:
        """How many workers of an app are ready, by their heartbeats."""

    def is_staffed(self, app: str) -> bool:
        """Whether a worker of an app lives, ready or not, as far as its lock or its heartbeats tell."""

    def members(self) -> set[str]:
        """The workers of all apps that are recorded."""


class Rollouts(Protocol):
    """The versions of an app that run side by side, and their shares."""

    def read(self, app: str, silent: float) -> Rollout | None:
        """Which versions of an app run side by side; None: there never were versions. A worker that said nothing for
        `silent` seconds is not waited for: its leases are over."""

    def enter(self, app: str, version: str, silent: float) -> Rollout | None:
        """The same, for a worker of a version that starts. The first version of an app is its baseline, but for workers
        without one that are there: these are."""

    def change(self, app: str, flows: Collection[str], rollout: Rollout) -> None:
        """Change a rollout, whose epoch is that of the one that is changed. Raises StoreConflict if another change
        came first."""


class Cleaner(Protocol):
    """Removes what retention keeps no longer."""

    def clean(self, policy: Retention, holder: str) -> int:
        """Remove what its retention ended, in one bounded batch, if `holder` is elected. Returns rows removed."""


class Schema(Protocol):
    """The tables."""

    def create_tables(self, metadata: object) -> None:
        """Create the app's own tables, where this store does so; elsewhere migrations are the user's.

        Raises StoreConflict, or StoreUnavailable.
        """


class Store(Protocol):
    """The database: inbox, message rows, dead letters, subscriptions, workers, ledger."""

    injects: Mapping[type, str]
    """Types that handlers may ask for to write in the unit of work, and what they are for."""
    session: type
    """The one of them that `UnitOfWork.run` gives."""
    serial: bool
    """One writer at a time (SQLite): a handler that is slow must not hold the transaction open."""
    fence: Fence | None
    """What this process commits from now on counts only while this holds; else the commit raises Fenced."""
    version: str
    """Which version of its app this process runs: its dead letters say so."""

    def unit(self, flow: str, deadline: float = 60.0, lane: str = "") -> AbstractContextManager[Unit]:
        """A unit of work for a flow. Leaving it without commit rolls back."""

    def join(self, session: object, lane: str) -> Unit:
        """A unit inside the caller's own transaction, which the caller commits. Raises ConfigError elsewhere."""

    def now(self) -> float:
        """The database's time, in seconds since the epoch."""

    def started(self) -> str:
        """Since when the database's server runs: another answer after a restart. Raises StoreUnavailable."""

    def key(self) -> bytes:
        """The secret of this store, which all its instances know. Raises ConfigError where it has none yet."""

    def check_place(self) -> None:
        """Raise StoreLost if the database that this process has opened was removed or replaced. Does not wait.
        A commit never succeeds there either."""

    def classify(self, error: BaseException) -> BaseException:
        """The StoreConflict or StoreUnavailable that a database error means; else the error itself."""

    def wait(self, seconds: float) -> set[str] | None:
        """Block until another transaction may have written rows, at most so long. The flows told; None: unknown."""

    def notify(self, flows: Collection[str]) -> None:
        """Wake those who wait for rows of these flows, in this process and in others."""

    def close(self) -> None:
        """Release every connection."""

    @property
    def schema(self) -> Schema: ...

    @property
    def queue(self) -> Queue: ...

    @property
    def subscribers(self) -> Subscribers: ...

    @property
    def answers(self) -> Answers: ...

    @property
    def directions(self) -> Directions: ...

    @property
    def uptime(self) -> Uptime: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def groups(self) -> Groups: ...

    @property
    def fleet(self) -> Fleet: ...

    @property
    def suspects(self) -> Suspects: ...

    @property
    def rollouts(self) -> Rollouts: ...

    @property
    def retention(self) -> Cleaner: ...


class Source(Protocol):
    """Where a lane gets the messages of its flow."""

    @property
    def stocked(self) -> bool:
        """Whether it holds something that only this lane can receive. Any thread may ask; does not block."""

    def receive(self, limit: int) -> list[Delivery]:
        """What is there, up to `limit`, without waiting for more."""

    def settle(self, deliveries: Sequence[Delivery]) -> None:
        """These are finished: their unit of work is committed."""

    def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give these back unfinished: any lane may have them now."""

    def close(self) -> None:
        """Stop receiving."""


class Transport(Protocol):
    """Carries copies from the store to the flows they are addressed to."""

    lease: float
    """Seconds for which rows are born leased to the lane that sends them after its commit; 0: rows are the queue."""
    limit: int
    """The largest body, in bytes."""

    @property
    def ready(self) -> bool:
        """Whether `send` has a chance now. Does not block."""

    @property
    def hindered(self) -> Mapping[str, str]:
        """Where sources of this transport can receive nothing, while they can elsewhere: address -> why. Empty while
        the transport as a whole is away, which `wait` raises. Any thread may ask; does not block."""

    def declare(self, flows: Collection[str], shared: Collection[Shared] = ()) -> None:
        """Make the places that these flows receive from, and those where they meet other programs.

        Raises ConfigError where one is not what it must be.
        """

    def audit(self, flows: Collection[str], shared: Collection[Shared] = ()) -> Sequence[str]:
        """What is to be said of these places as they are; none is made. Raises as `declare` does."""

    def doubts(self, deadlines: Mapping[str, float]) -> Sequence[str]:
        """Warnings of connections that are not encrypted, and of flows whose handlers may take so many seconds that the
        transport hands a message out again meanwhile. Does not block."""

    def others(self, worker: str, is_known: Callable[[], bool]) -> Mapping[str, str]:
        """The workers that receive for this store by this transport too, whatever their database: worker -> its host
        and process. From now on this worker answers the same question, while `is_known`: its database has recorded it
        lately.

        Blocks, at most for a second. Empty where all that receive share the database.
        """

    def source(self, flow: str, worker: str, limit: int) -> Source:
        """A source of one flow's messages for one lane, which receives at most `limit` at once."""

    def send(self, copies: Sequence[Copy]) -> list[Receipt]:
        """Carry away committed copies. One receipt each, confirmed or not; none where the rows are the queue.

        Blocks until all are confirmed, at most for the transport's own deadline.
        """

    def wait(self, seconds: float, flows: Collection[str]) -> set[str]:
        """Block until one of these flows may have something to receive, at most so long. Which may; others too.

        Raises BrokerUnavailable while nothing can be received.
        """

    def depths(self, flows: Collection[str]) -> Mapping[str, int]:
        """How many messages wait for these flows outside of the store's rows."""

    def empty(self, flow: str, keep: Callable[[Sequence[Delivery]], None]) -> None:
        """Hand all that waits for a flow outside of the store's rows to `keep`, some at a time, and remove the place
        that it receives from. An error of `keep` passes, and messages that it did not take are still there.

        Blocks. Raises ConfigError while somebody receives for the flow, and BrokerUnavailable.
        """

    def close(self) -> None:
        """Release every connection."""


Ids = Callable[[], str]
"""Makes message and row ids: unique, and sortable by time."""
Random = Callable[[], float]
"""Uniform in [0, 1)."""
