"""The database as the queue."""

from flowkit.ports import Transport
from flowkit.transports import Opening


def open_transport(opening: Opening) -> Transport:
    """Opens the message rows of the store as the queue."""
    from flowkit.transports.sql.transport import SqlTransport

    return SqlTransport(opening.store, opening.settings.lease)
