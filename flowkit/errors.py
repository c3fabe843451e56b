"""Every error that FlowKit raises or asks handlers to raise. The ground floor: imports nothing of FlowKit."""


class FlowKitError(Exception):
    """Base of all errors of FlowKit."""


class DefinitionError(FlowKitError):
    """A flow, channel or policy is defined wrongly. Says which, what is wrong, and what to write instead."""


class ConfigError(FlowKitError):
    """A setting is wrong or a service cannot be used as configured. Names the setting."""


class Reject(FlowKitError):
    """Raised by a handler: this message is a dead letter now, whatever the retry policy says."""


class RetryAfter(FlowKitError):
    """Raised by a handler: try this message again after `delay` (a duration such as "30s"). Counts as an attempt."""

    def __init__(self, delay: object, reason: str = "the handler asked for a retry") -> None:
        super().__init__(reason)
        self.delay = delay


class Undecodable(FlowKitError):
    """A message cannot be turned into what its flow expects. It is dead with this reason, never retried."""


class Unrouted(FlowKitError):
    """A message was sent to a channel that no flow subscribes to."""


class TooLarge(FlowKitError):
    """A message exceeds the limit of its app or transport. Raised before it is staged."""


class OutcomeUnknown(FlowKitError):
    """The connection broke during COMMIT: the message may or may not be accepted. Send it again under `id`."""

    def __init__(self, id: str) -> None:
        super().__init__(
            f"the connection was lost during COMMIT, so message {id} may or may not have been accepted; "
            f"send it again with id={id!r}: it is accepted once"
        )
        self.id = id


class StoreUnavailable(FlowKitError):
    """The database cannot be reached or cannot write now. Nothing was acknowledged; the work is done again."""


class CommitUnknown(StoreUnavailable):
    """The connection was lost during COMMIT. The inbox decides when the same deliveries run again."""


class StoreConflict(FlowKitError):
    """Two transactions collided (serialization, deadlock, lock timeout, busy). Runs again; never an attempt."""


class TransactionEnded(FlowKitError):
    """A handler ended, or tried to end, the transaction that FlowKit gave it."""
