"""RabbitMQ: one quorum queue for each flow, and one I/O thread for all connections. Only this package uses pika."""
