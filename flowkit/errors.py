"""Every error that FlowKit raises or asks handlers to raise. The ground floor: imports nothing of FlowKit."""


class FlowKitError(Exception):
    """Base of all errors of FlowKit."""


class DefinitionError(FlowKitError):
    """A flow, channel or policy is defined wrongly. Says which, what is wrong, and what to write instead."""


class ConfigError(FlowKitError):
    """A setting is wrong or a service cannot be used as configured. Names the setting."""


class StoreMissing(ConfigError):
    """The database's file is not there, and nobody asked to make it."""


class StoreOutdated(ConfigError):
    """A file of SQLite has the schema of a version before, or none, and nobody asked to bring it up to this one."""


class Reject(FlowKitError):
    """Raised by a handler: this message is a dead letter now, whatever the retry policy says."""


class RetryAfter(FlowKitError):
    """Raised by a handler: try this message again after `delay` (a duration such as "30s"). Counts as an attempt."""

    def __init__(self, delay: object, reason: str = "the handler asked for a retry") -> None:
        super().__init__(reason)
        self.delay = delay


class Unauthorized(FlowKitError):
    """Raised by a route's `principal` hook: the request is answered with 401 and this reason, and is not accepted.

    `challenge` is what the header `WWW-Authenticate` says.
    """

    def __init__(self, reason: str = "this request does not say who sends it", challenge: str = "Bearer") -> None:
        super().__init__(reason)
        self.challenge = challenge


class Undecodable(FlowKitError):
    """A message cannot be turned into what its flow expects. It is dead with this reason, never retried."""

    def __init__(self, reason: str, told: str = "") -> None:
        """`told` is the reason for logs and lists, where the reason itself repeats data of the message."""
        super().__init__(reason)
        self.told = told or reason


class Unrouted(FlowKitError):
    """A message was sent to a channel that no flow subscribes to."""


class TooLarge(FlowKitError):
    """A message exceeds the limit of its app or transport. Raised before it is staged."""


class Reused(FlowKitError):
    """The id of a message was accepted before with another body. Nothing was accepted."""


class OutcomeUnknown(FlowKitError):
    """The connection broke during COMMIT: the messages of these ids may or may not be accepted, all or none.

    Send them again under the same ids: they are accepted once.
    """

    def __init__(self, *ids: str) -> None:
        what = f"message {ids[0]}" if len(ids) == 1 else f"{len(ids)} messages from {ids[0]} to {ids[-1]}"
        how = f"id={ids[0]!r}" if len(ids) == 1 else "the ids that this error carries"
        super().__init__(
            f"the connection was lost during COMMIT, so {what} may or may not have been accepted; "
            f"send again with {how}: each is accepted once"
        )
        self.ids = ids
        self.id = ids[0]


class Unavailable(FlowKitError):
    """A service cannot be used now. Nothing was acknowledged; the work is done again."""


class BrokerUnavailable(Unavailable):
    """The broker cannot be reached now. What is committed waits in the database."""


class StoreUnavailable(Unavailable):
    """The database cannot be reached or cannot write now. Nothing was acknowledged; the work is done again."""


class CommitUnknown(StoreUnavailable):
    """The connection was lost during COMMIT. The inbox decides when the same deliveries run again."""


class Fenced(StoreUnavailable):
    """Another group of this app's instances is active now: nothing was committed, and they do this work."""


class StoreLost(StoreUnavailable):
    """The database that this process has opened was removed or replaced: nothing was committed, and nothing will be. A
    process that starts anew opens what is there now."""


class StoreConflict(FlowKitError):
    """Two transactions collided (serialization, deadlock, lock timeout, busy). Runs again; never an attempt."""


class Apart(FlowKitError):
    """A statement of a handler leaves something that the next message would meet: each needs its own transaction.

    Nothing is committed, and the messages of the batch run once more, whatever the handler makes of this error.
    """


class TransactionEnded(FlowKitError):
    """A handler ended, or tried to end, the transaction that FlowKit gave it."""
