"""All that a store must do."""

from flowkit.testing.conformance.answers import AnswersConformance
from flowkit.testing.conformance.fleet import FleetConformance
from flowkit.testing.conformance.groups import GroupsConformance
from flowkit.testing.conformance.inbox import InboxConformance
from flowkit.testing.conformance.ledger import LedgerConformance
from flowkit.testing.conformance.objects import ObjectsConformance
from flowkit.testing.conformance.queue import QueueConformance
from flowkit.testing.conformance.rollouts import RolloutsConformance
from flowkit.testing.conformance.subscribers import SubscribersConformance


class StoreConformance(
    InboxConformance,
    ObjectsConformance,
    AnswersConformance,
    QueueConformance,
    LedgerConformance,
    GroupsConformance,
    RolloutsConformance,
    FleetConformance,
    SubscribersConformance,
):
    """The rules of each part of a store."""
