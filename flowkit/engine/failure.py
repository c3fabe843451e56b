"""The outcome of a message whose handling failed: a dead letter, a deferral or a retry."""

from flowkit import duration
from flowkit.engine.item import Exhausted, Item
from flowkit.errors import Reject, RetryAfter, TransactionEnded, Undecodable
from flowkit.model.retry import RetryPolicy
from flowkit.ports import REFUSED, Claim, Dead, Deferred, Random, Retried

DEFER_SECONDS = 5.0
"""Seconds until a message comes again that this version of the app cannot read, while a rollout runs."""


def outcome_of(
    item: Item, error: BaseException, claim: Claim, retry: RetryPolicy, random: Random
) -> Dead | Deferred | Retried:
    """The outcome of a message that failed with `error`, by the retry policy of its flow.

    `claim`: the claim of the message, with the number of earlier attempts. Does not block.
    """
    attempts = claim.attempts + 1
    if isinstance(error, Exhausted):
        return Dead("crashed", error)
    if isinstance(error, Reject | TransactionEnded):
        return Dead("rejected", error)
    if item.unread:
        return Deferred(DEFER_SECONDS, error)
    if isinstance(error, Undecodable):
        return Dead(REFUSED if item.delivery.refused else "undecodable", error)
    if attempts >= retry.attempts:
        return Dead("failed", error)
    if isinstance(error, RetryAfter):
        return Retried(duration.seconds(error.delay, "RetryAfter"), error)
    return Retried(retry.delay(attempts, random()), error)
