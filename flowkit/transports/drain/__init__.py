"""Two transports while you migrate off a broker: the message rows, and a broker that is emptied."""

from flowkit.ports import Transport


def open_transport(rows: Transport, broker: Transport) -> Transport:
    """Opens a transport that sends through the rows and receives from both."""
    from flowkit.transports.drain.transport import DrainingTransport

    return DrainingTransport(rows, broker)
