"""Every error that FlowKit raises or asks handlers to raise. This module imports nothing of FlowKit."""


class FlowKitError(Exception):
    """Base of all errors of FlowKit."""


class DefinitionError(FlowKitError):
    """A flow, channel or policy is defined wrongly. The text says which one, what is wrong and what to write."""


class ConfigError(FlowKitError):
    """A setting is wrong, or a service cannot be used as configured. The text names the setting."""


class StoreMissing(ConfigError):
    """The SQLite file does not exist, and the caller did not ask to create it."""


class StoreOutdated(ConfigError):
    """A SQLite file has no schema or an older one, and the caller did not ask to upgrade it."""


class Reject(FlowKitError):
    """A handler raises this to make its message a dead letter at once, whatever the retry policy says."""


class RetryAfter(FlowKitError):
    """A handler raises this to retry its message after `delay`, a duration such as "30s". The attempt counts."""

    def __init__(self, delay: object, reason: str = "the handler asked for a retry") -> None:
        super().__init__(reason)
        self.delay = delay


class Unauthorized(FlowKitError):
    """A route's `principal` hook raises this to refuse a request: the answer is 401 with this reason.

    `challenge` is the value of the header `WWW-Authenticate`.
    """

    def __init__(self, reason: str = "this request does not say who sends it", challenge: str = "Bearer") -> None:
        super().__init__(reason)
        self.challenge = challenge


class Undecodable(FlowKitError):
    """A message cannot be decoded for its flow. It becomes a dead letter with this reason, without a retry."""

    def __init__(self, reason: str, told: str = "") -> None:
        """`told` is the reason without data of the message, for logs and lists."""
        super().__init__(reason)
        self.told = told or reason


class Unrouted(FlowKitError):
    """A message was sent to a channel that no flow subscribes to."""


class TooLarge(FlowKitError):
    """A message exceeds the limit of its app or transport. Raised before it is staged."""


class Reused(FlowKitError):
    """A message with this id but another body was accepted earlier. Nothing was accepted now."""


class OutcomeUnknown(FlowKitError):
    """The connection broke during COMMIT: either all messages with these ids were accepted, or none.

    Send them again with the same ids: each is accepted once.
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
    """A service cannot be used now. Nothing was acknowledged; the work runs again."""


class BrokerUnavailable(Unavailable):
    """The broker cannot be reached now. Committed messages wait in the database."""


class StoreUnavailable(Unavailable):
    """The database cannot be reached or cannot write now. Nothing was acknowledged; the work runs again."""


class CommitUnknown(StoreUnavailable):
    """The connection was lost during COMMIT. The deliveries run again, and the inbox shows whether they committed."""


class Fenced(StoreUnavailable):
    """Another group of this app is active now. Nothing was committed; that group does the work."""


class StoreLost(StoreUnavailable):
    """The database that this process opened was removed or replaced. The process commits nothing any more.

    A restarted process opens the database that is there then.
    """


class StoreConflict(FlowKitError):
    """Two transactions collided: serialization, deadlock, lock timeout, busy. The work runs again, at no attempt."""


class Apart(FlowKitError):
    """A handler's statement leaves state that the next message would see: each message needs its own transaction.

    Nothing is committed. The messages of the batch run again, even if the handler catches this error.
    """


class TransactionEnded(FlowKitError):
    """A handler ended, or tried to end, the transaction that FlowKit gave it."""
