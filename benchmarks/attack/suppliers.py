"""Programs that publish to the broker by three independent client libraries."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import aio_pika
import kombu
from pika import BasicProperties, BlockingConnection, URLParameters
from pika.exceptions import AMQPError


class Sent(NamedTuple):
    """A message that is published, with its exchange and routing key."""

    exchange: str
    key: str
    body: bytes
    id: str
    headers: Mapping[str, str]


class Supplier(Protocol):
    """Publishes, each time by a connection of its own."""

    name: str

    def publish(self, url: str, sent: Sent) -> str:
        """Publish, and wait until the broker confirmed it. Returns how it was refused; empty where it was not."""


class Pika:
    name = "pika"

    def publish(self, url: str, sent: Sent) -> str:
        connection = BlockingConnection(URLParameters(url))
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            properties = BasicProperties(message_id=sent.id, app_id="shop", headers=dict(sent.headers))
            channel.basic_publish(sent.exchange, sent.key, sent.body, properties)
        except AMQPError as error:
            return repr(error)
        finally:
            if connection.is_open:
                connection.close()
        return ""


class Kombu:
    name = "kombu"

    def publish(self, url: str, sent: Sent) -> str:
        with kombu.Connection(url, transport_options={"confirm_publish": True}) as connection:
            try:
                connection.Producer().publish(
                    sent.body, routing_key=sent.key, exchange=sent.exchange, content_type="application/json",
                    content_encoding="utf-8", message_id=sent.id, app_id="shop", headers=dict(sent.headers),
                )  # fmt: skip
            except connection.channel_errors as error:
                return repr(error)
        return ""


class AioPika:
    name = "aio-pika"

    def publish(self, url: str, sent: Sent) -> str:
        return asyncio.run(self._publish(url, sent))

    async def _publish(self, url: str, sent: Sent) -> str:
        async with await aio_pika.connect(url) as connection:
            channel = await connection.channel()
            message = aio_pika.Message(sent.body, message_id=sent.id, app_id="shop", headers=dict(sent.headers))
            exchange = channel.default_exchange
            if sent.exchange:
                exchange = await channel.get_exchange(sent.exchange, ensure=False)
            try:
                await exchange.publish(message, sent.key)
            except aio_pika.exceptions.AMQPError as error:
                return repr(error)
        return ""


SUPPLIERS: Sequence[Supplier] = (Pika(), Kombu(), AioPika())
