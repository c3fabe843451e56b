"""Flows: what is wrong in a definition, retention and retries."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy.orm import Session

from flowkit import (
    App,
    DefinitionError,
    Message,
    RetryPolicy,
)
from flowkit.testing import Harness
from tests.support.shop import Order, new_app

# ---------------------------------------------------------------- definitions


class Unknown:
    """Nobody provides this, and nobody can serialise it."""


def no_parameters() -> None: ...
def unknown_parameter(order: Order, thing: Unknown) -> None: ...
def untyped_parameter(order: Order, db) -> None: ...  # type: ignore[no-untyped-def]


def body_is_message(message: Message) -> None: ...
def returns_unserialisable(order: Order) -> Unknown:
    return Unknown()


def returns_order(order: Order) -> Order:
    return order


def returns_text(order: Order) -> BaseModel:
    return order


def wants_perhaps(order: Order, db: Session | None = None) -> None: ...


WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (no_parameters, {}, "takes no body"),
    (unknown_parameter, {}, r"parameter thing: Unknown cannot be injected.*app\.provide"),
    (untyped_parameter, {}, "parameter db has no type: annotate it; known types are .*Session"),
    (body_is_message, {}, "first parameter is the body"),
    (returns_unserialisable, {"to": "next"}, "cannot be serialised"),
    (returns_order, {}, "has no to="),
    (returns_order, {"to": ["next", "other"]}, r"return the one meant: channel\(value\)"),
    (returns_text, {"to": "next"}, "carries Order"),
    (wants_perhaps, {}, "parameter db: .*Session.* is never injected; write the type alone"),
    (returns_order, {"to": "lonely"}, "channel lonely, which has no subscriber"),
]


@pytest.mark.parametrize(("handler", "options", "message"), WRONG)
def test_a_wrong_definition_says_which_flow_what_and_what_to_write(
    handler: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    app = App("shop")
    for name in ("next", "other"):
        app.flow(app.channel(name, Order), name=f"gets_{name}")(lambda order: None)
    app.flow("orders", name="bad", **options)(handler)
    with pytest.raises(DefinitionError, match=f"(?s)flow shop.bad.*{message}"):
        app.check([Session])


def test_what_is_wrong_at_once_is_said_at_import() -> None:
    app = App("shop")
    app.flow("orders", name="one")(lambda order: None)
    with pytest.raises(DefinitionError, match=r"shop\.one is defined twice.*name="):
        app.flow("orders", name="one")(lambda order: None)
    with pytest.raises(DefinitionError, match="isolate='none'"):
        app.flow("orders", name="three", isolate="none")(lambda order: None)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="at least 1"):
        app.flow("orders", name="four", concurrency=0)(lambda order: None)
    with pytest.raises(DefinitionError, match="deadline"):
        app.flow("orders", name="five", deadline="soon")(lambda order: None)
    with pytest.raises(DefinitionError, match="control characters"):
        app.flow("orders", name="new\nline")(lambda order: None)
    with pytest.raises(DefinitionError, match="control characters"):
        app.channel("a\r\nb")
    app.channel("typed", Order)
    with pytest.raises(DefinitionError, match="declared twice"):
        app.channel("typed", str)
    with pytest.raises(DefinitionError, match="another app"):
        app.flow(App("other").channel("orders"), name="six")(lambda order: None)
    with pytest.raises(DefinitionError, match="letters, digits"):
        App("a.b")
    with pytest.raises(DefinitionError, match="no flows"):
        App("empty").check()


def test_a_channel_may_be_optional_or_have_its_subscriber_elsewhere() -> None:
    app = App("shop")
    app.flow("orders", name="one", to=app.channel("free", Order, optional=True))(returns_order)
    app.check()
    app.flow("orders", name="two", to="elsewhere")(returns_order)
    with pytest.raises(DefinitionError, match="elsewhere"):
        app.check()
    app.check(subscribed={"elsewhere": ["other.flow"]})


def test_row_35_retention_must_outlive_every_late_delivery() -> None:
    app = App("shop", retention="8d", max_delay="1d", dead_letter_hold="7d")
    app.flow("orders", name="one", retry=RetryPolicy(attempts=2, first="1h", most="1h", jitter=0))(lambda order: None)
    with pytest.raises(
        DefinitionError, match=r"flow shop.one: App\(retention='8d'\) is not longer.*write more than 8d1h"
    ):
        app.check()


@pytest.mark.parametrize(
    "policy", [{"attempts": 0}, {"factor": 0.5}, {"jitter": 1}, {"first": "-1s"}, {"most": "long"}]
)
def test_a_wrong_policy_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        RetryPolicy(**policy)


@given(st.integers(1, 200), st.floats(0, 1, exclude_max=True), st.floats(0, 0.9))
def test_waits_stay_within_their_jitter_and_their_sum(failures: int, random: float, jitter: float) -> None:
    policy = RetryPolicy(attempts=8, first="1s", factor=2, most="5m", jitter=jitter)
    plain = min(300.0, 2.0 ** min(failures - 1, 20))
    assert plain * (1 - jitter) - 1e-9 <= policy.delay(failures, random) <= plain * (1 + jitter) + 1e-9
    assert policy.longest >= sum(policy.delay(n, random) for n in range(1, 8)) - 1e-6


def test_row_i1_a_downstream_that_is_away_for_ten_minutes_costs_no_message() -> None:
    """With the default policy."""
    app = new_app()
    applied: list[str] = []

    @app.flow(app.channel("orders", Order))
    def call(order: Order) -> None:
        if harness.clock.now() < back:
            raise ConnectionError("the downstream is away")
        applied.append(order.name)

    with Harness(app) as harness:
        back = harness.clock.now() + 600
        for number in range(100):
            harness.publish("orders", Order(name=str(number)))
        harness.until_quiet()
        while harness.clock.now() < back + 360:
            harness.advance("5s")
        assert harness.dead() == []
        assert sorted(applied) == sorted(str(number) for number in range(100))
        assert harness.balances()["shop.call"].balanced


def test_the_default_policy_outlasts_half_an_hour_and_the_retention_it_by_far() -> None:
    policy = RetryPolicy()
    assert sum(policy.delay(failures, 0.0) for failures in range(1, policy.attempts)) > 1800
    app = App("shop")
    assert policy.longest < 3600 < app.retention - app.max_delay - app.dead_letter_hold
