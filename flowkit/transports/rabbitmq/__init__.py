"""RabbitMQ: one quorum queue for each flow, and one I/O thread for all connections. Only this package uses pika."""

from flowkit.ports import Transport
from flowkit.transports import Opening


def open_transport(opening: Opening) -> Transport:
    """Return the transport of the RabbitMQ at a URL. It connects at its first use."""
    from flowkit.transports.rabbitmq.transport import RabbitTransport

    return RabbitTransport(
        opening.url,
        opening.identity(),
        opening.clock,
        opening.random,
        opening.settings.broker_management_url,
        opening.setting,
        keys=opening.keys,
    )
