"""Handlers: what they get, and what they return."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from flowkit import (
    App,
    Channel,
    DefinitionError,
    Logger,
    Message,
    Outbox,
    Reject,
    RetryAfter,
    RetryPolicy,
    Routed,
    Split,
)
from flowkit.testing import Harness
from tests.support.shop import FAST, Order, new_app

# ---------------------------------------------------------------- bodies


@dataclass
class Point:
    x: int


class Shape(TypedDict):
    x: int


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Order, Order(name="a")),
        (Point, Point(1)),
        (Shape, {"x": 1}),
        (dict, {"a": [1, None]}),
        (dict[str, int], {"a": 1}),
        (list[int], [1, 2]),
        (str, 'text "quoted" ü'),
        (bytes, b"\x00\xff"),
        (int, 3),
        (Any, {"any": "thing"}),
    ],
)
def test_bodies_arrive_as_they_were_sent(kind: Any, value: Any) -> None:
    app = App("shop")
    values = app.channel("values", kind)
    got: list[Any] = []

    def take(body: Any) -> None:
        got.append(body)

    take.__annotations__["body"] = kind
    app.flow(values)(take)
    with Harness(app) as harness:
        harness.publish(values, value)
        harness.until_quiet()
        assert harness.dead() == []
    assert got == [value]


def test_a_value_of_another_type_is_refused_at_the_send() -> None:
    app = App("shop")
    orders = app.channel("orders", Order)
    app.flow(orders, name="one")(lambda order: None)
    with Harness(app) as harness:
        with pytest.raises(TypeError, match="channel orders carries Order: name"):
            harness.publish(orders, {"nome": "a"})
        harness.publish(orders, {"name": "a"})
        with pytest.raises(TypeError, match="cannot be serialised"):
            harness.publish(app.channel("any", optional=True), object())


# ---------------------------------------------------------------- injection


class Plain:
    """Something provided that needs no closing."""


class Client:
    """Something provided."""

    events: list[str]

    def __enter__(self) -> "Client":
        self.events.append("opened")
        return self

    def __exit__(self, *error: object) -> None:
        self.events.append("closed")


def test_handlers_get_what_they_ask_for(caplog: pytest.LogCaptureFixture) -> None:
    Client.events = []
    app = new_app()
    orders, left, right = app.channel("orders", Order), app.channel("left", Order), app.channel("right", str)
    app.provide(Client, Client)
    app.provide(Plain, Plain)
    got: dict[str, Any] = {}

    @app.flow(orders, to=[left, right])
    def all_of_it(
        order: Order,
        message: Message,
        outbox: Outbox,
        logger: Logger,
        db: Session,
        client: Client,
        plain: Plain,
        n: int = 7,
    ) -> None:
        got.update(message=message, client=client, plain=plain, n=n)
        logger.warning("seen")
        outbox.send(left, order, key="k", headers={"h": "v"})
        outbox.send(right, "later", delay="1h")

    received: list[Message] = []

    @app.flow(left)
    def on_left(order: Order, message: Message) -> None:
        received.append(message)

    @app.flow(right)
    def on_right(text: str) -> None:
        got["text"] = text

    with Harness(app) as harness:
        id = harness.publish(orders, Order(name="a"))
        harness.until_quiet()
        assert "text" not in got
        harness.advance("59m")
        assert "text" not in got, "a delay is not early"
        harness.advance("2m")
        assert Client.events == ["opened"]
    assert Client.events == ["opened", "closed"]
    assert (got["n"], got["plain"], got["text"]) == (7, got["plain"], "later")
    assert isinstance(got["plain"], Plain)
    assert (got["message"].id, got["message"].source) == (id, "shop")
    (one,) = received
    assert (one.key, one.headers, one.correlation, one.causation) == ("k", {"h": "v"}, id, id)
    assert one.source == "shop.all_of_it"
    assert "seen" in caplog.text


def test_provided_twice_is_refused() -> None:
    app = App("shop")
    app.provide(Client, Client)
    with pytest.raises(DefinitionError, match="provided twice"):
        app.provide(Client, Client)


# ---------------------------------------------------------------- returning is publishing


def two(app: App) -> tuple[Channel[Order], Channel[Order], Channel[Order]]:
    return app.channel("orders", Order), app.channel("a", Order, optional=True), app.channel("b", Order, optional=True)


def test_a_value_goes_to_the_channel_and_none_goes_nowhere() -> None:
    app = App("shop")
    orders, a, _ = two(app)
    app.flow(orders, to=a, name="one")(lambda order: None if order.deed else order)
    with Harness(app) as harness:
        harness.publish(orders, Order(name="1"))
        harness.publish(orders, Order(name="2", deed="none"))
        harness.until_quiet()
        assert harness.sent(a) == [Order(name="1")]


def test_routed_values_generators_and_split_send_many_and_nothing_else_does() -> None:
    app = App("shop")
    orders, a, b = two(app)
    lists = app.channel("lists", list[int], optional=True)

    @app.flow(orders, to=[a, b], name="generator")
    def generator(order: Order) -> Iterator[Routed[Order]]:
        yield a(order)
        yield b(order, key="k")

    @app.flow(orders, to=a, name="split")
    def split(order: Order) -> Split[Order]:
        return Split([order, order])

    @app.flow(orders, to=lists, name="list")
    def as_list(order: Order) -> list[int]:
        return [1, 2]

    with Harness(app) as harness:
        harness.publish(orders, Order(name="1"))
        harness.until_quiet()
        assert len(harness.sent(a)) == 3
        assert len(harness.sent(b)) == 1
        assert harness.sent(lists) == [[1, 2]]


def test_sending_where_the_flow_does_not_declare_is_a_dead_letter_with_advice() -> None:
    app = App("shop")
    orders, a, b = two(app)

    @app.flow(orders, to=a, retry=RetryPolicy(attempts=1))
    def wrong(order: Order, outbox: Outbox) -> None:
        outbox.send(b, order)

    with Harness(app) as harness:
        harness.publish(orders, Order(name="1"))
        harness.until_quiet()
        (letter,) = harness.dead()
        assert "flow shop.wrong sends to channel b, which it does not declare" in letter.error


def test_a_generator_that_fails_half_way_sends_nothing() -> None:
    app = App("shop")
    orders, a, _ = two(app)

    @app.flow(orders, to=a, retry=FAST)
    def half(order: Order) -> Iterator[Order]:
        yield order
        raise ValueError("half-way")

    with Harness(app) as harness:
        harness.publish(orders, Order(name="1"))
        for _ in range(4):
            harness.advance("1s")
        assert harness.sent(a) == []
        assert [letter.attempts for letter in harness.dead()] == [3]


# ---------------------------------------------------------------- failures


def test_reject_is_dead_now_and_retry_after_waits_so_long() -> None:
    app = App("shop")
    orders = app.channel("orders", Order)
    runs: list[str] = []

    @app.flow(orders, retry=RetryPolicy(attempts=2))
    def picky(order: Order) -> None:
        runs.append(order.name)
        if order.deed == "reject":
            raise Reject("not this one")
        raise RetryAfter("1h")

    with Harness(app) as harness:
        harness.publish(orders, Order(name="r", deed="reject"))
        harness.publish(orders, Order(name="w"))
        harness.until_quiet()
        assert [letter.reason for letter in harness.dead()] == ["rejected"]
        harness.advance("59m")
        assert runs == ["r", "w"]
        harness.advance("2m")
        assert runs == ["r", "w", "w"]
        assert sorted(letter.reason for letter in harness.dead()) == ["failed", "rejected"]
        assert "not this one" in harness.dead()[0].error


@pytest.mark.parametrize("end", [SystemExit(3), KeyError("k"), RecursionError("deep")])
def test_whatever_a_handler_raises_is_an_attempt(end: BaseException) -> None:
    app = App("shop")
    orders = app.channel("orders", Order)

    @app.flow(orders, retry=FAST)
    def bad(order: Order) -> None:
        raise end

    with Harness(app) as harness:
        harness.publish(orders, Order(name="1"))
        for _ in range(4):
            harness.advance("1s")
        (letter,) = harness.dead()
        assert (letter.attempts, type(end).__name__ in letter.error) == (3, True)
        assert type(end).__name__ in letter.stack


def test_flows_that_feed_themselves_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowkit.testing.harness.ROUNDS", 50)
    app = App("shop")
    orders = app.channel("orders", Order)
    app.flow(orders, to=orders, name="loop")(lambda order: order)
    with Harness(app) as harness:
        harness.publish(orders, Order(name="1"))
        with pytest.raises(RuntimeError, match="send to themselves"):
            harness.until_quiet()


def test_the_function_stays_a_plain_function() -> None:
    app = App("shop")

    @app.flow("orders", to=app.channel("next", Order, optional=True))
    def plain(order: Order) -> Order:
        return order

    assert plain(Order(name="a")) == Order(name="a")
