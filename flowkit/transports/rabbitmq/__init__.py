"""RabbitMQ: quorum queues, one for each flow, spoken to by one I/O thread. The only home of pika."""
