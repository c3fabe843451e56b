"""What comes from RabbitMQ reaches its consumer, however the bytes are cut."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties, ConnectionParameters
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import InvalidFrameError
from pika.frame import Body, Frame, Header, Heartbeat, Method
from pika.spec import Basic

from flowkit.transports.rabbitmq.connection import Connection

MOST = 50
"""Bytes of a frame of a body, here."""
Got = list[tuple[int, int, bool, object, object, bytes]]


def message(tag: int, body: bytes, consumer: str = "work", channel: int = 1) -> bytes:
    """A delivery, as a broker sends it."""
    return b"".join(frames(tag, body, consumer, channel))


def frames(tag: int, body: bytes, consumer: str = "work", channel: int = 1) -> list[bytes]:
    """The frames of a delivery."""
    made: list[Frame] = [
        Method(channel, Basic.Deliver(consumer, tag, tag % 2 == 0, "exchange", "key")),
        Header(channel, len(body), BasicProperties(headers={"n": tag, "x": "y" * (tag % 7)})),
        *(Body(channel, body[start : start + MOST]) for start in range(0, len(body), MOST)),
    ]
    return [frame.marshal() for frame in made]


def feed(kind: type[Any], chunks: Sequence[bytes]) -> tuple[Got, Any]:
    """What consumers "work" and "gone" of two channels of an open connection get, of which the second is cancelled."""
    loop = asyncio.new_event_loop()
    connection = kind(ConnectionParameters(), custom_ioloop=loop, internal_connection_workflow=False)
    connection._set_connection_state(connection.CONNECTION_OPEN)
    got: Got = []

    def consume(channel: Any, method: Basic.Deliver, found: BasicProperties, body: bytes) -> None:
        tag = int(method.delivery_tag or 0)
        got.append((channel.channel_number, tag, bool(method.redelivered), method.exchange, found.headers, body))

    for number in (1, 2):
        channel: Any = Channel(connection, number, lambda _: None)
        channel._set_state(channel.OPEN)
        connection._channels[number] = channel
        channel._consumers = {"work": consume, "gone": consume}
        channel._cancelled.add("gone")
        channel._consumers_with_noack.add("gone")
    try:
        for chunk in chunks:
            connection._on_data_available(chunk)
    finally:
        loop.close()
    return got, connection


@given(
    bodies=st.lists(st.sampled_from([0, 1, MOST - 1, MOST, MOST + 1, 3 * MOST]), max_size=8),
    strangers=st.lists(st.integers(0, 7), max_size=3),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_deliveries_arrive_as_pika_gives_them(bodies: list[int], strangers: list[int], cuts: list[int]) -> None:
    stream = b""
    for tag, size in enumerate(bodies, 1):
        stream += message(tag, bytes([tag]) * size)
        if tag in strangers:  # between them what is no delivery of this consumer
            stream += Heartbeat().marshal() + message(99, b"cancelled", "gone")
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(edges)]
    got, connection = feed(Connection, chunks)
    expected, plain = feed(AsyncioConnection, chunks)
    assert got == expected
    assert [tag for _, tag, *_ in got] == [*range(1, len(bodies) + 1)]
    assert connection.bytes_received == plain.bytes_received == len(stream)
    assert connection._frame_buffer == b""


@given(
    sizes=st.tuples(st.sampled_from([1, MOST + 1, 3 * MOST]), st.sampled_from([1, MOST + 1, 3 * MOST])),
    turns=st.lists(st.integers(0, 1), max_size=12),
)
def test_the_frames_of_two_channels_may_come_in_turns(sizes: tuple[int, int], turns: list[int]) -> None:
    left = [frames(number + 1, b"%d" % number * size, channel=number + 1) for number, size in enumerate(sizes)]
    stream = b"".join(left[turn].pop(0) for turn in turns if left[turn])
    chunks = [stream + b"".join(left[0] + left[1])]
    got, _ = feed(Connection, chunks)
    assert got == feed(AsyncioConnection, chunks)[0]
    assert sorted((channel, body) for channel, *_, body in got) == [(1, b"0" * sizes[0]), (2, b"1" * sizes[1])]


def test_a_consumer_that_raises_gets_no_delivery_again() -> None:
    loop = asyncio.new_event_loop()
    connection: Any = Connection(ConnectionParameters(), custom_ioloop=loop, internal_connection_workflow=False)
    connection._set_connection_state(connection.CONNECTION_OPEN)
    channel: Any = Channel(connection, 1, lambda _: None)
    channel._set_state(channel.OPEN)
    connection._channels[1] = channel
    tags: list[int] = []

    def consume(_: object, method: Basic.Deliver, *rest: object) -> None:
        tags.append(int(method.delivery_tag or 0))
        if method.delivery_tag == 1:
            raise RuntimeError("the first")

    channel._consumers = {"work": consume}
    with pytest.raises(RuntimeError, match="the first"):
        connection._on_data_available(message(1, b"a") + message(2, b"b"))
    connection._on_data_available(message(3, b"c"))
    loop.close()
    assert tags == [1, 2, 3]


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(InvalidFrameError):
        feed(Connection, [message(1, b"a")[:-1] + b"\x00"])
