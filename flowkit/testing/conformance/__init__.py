"""The conformance kit: what every store and every transport must do. Subclass, say how to open yours, run pytest.

    class TestMyTransport(TransportConformance):
        features = Features(rows=False)

        def open(self) -> tuple[Store, Transport]: ...

Differences are declared in `Features`, never skipped silently.
"""

from flowkit.testing.conformance.kit import CHANNEL, DEADLINE_SECONDS, FLOW, OTHER, Features, delivery, message, raises
from flowkit.testing.conformance.store import StoreConformance
from flowkit.testing.conformance.transport import TransportConformance

__all__ = [
    "CHANNEL",
    "DEADLINE_SECONDS",
    "FLOW",
    "OTHER",
    "Features",
    "StoreConformance",
    "TransportConformance",
    "delivery",
    "message",
    "raises",
]
