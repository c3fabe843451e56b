"""A broker in memory, for tests. No setting names it: messages in memory end with their process."""

from flowkit.ports import Transport
from flowkit.transports import Opening


def open_transport(opening: Opening) -> Transport:
    """Opens a broker in memory."""
    from flowkit.transports.memory.transport import MemoryTransport

    return MemoryTransport(opening.clock)
