"""RabbitMQ: quorum queues, one for each flow, spoken to by one I/O thread. The only home of pika."""

from flowkit.ports import Transport
from flowkit.transports import Opening


def open_transport(opening: Opening) -> Transport:
    """Opens RabbitMQ at a URL."""
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
