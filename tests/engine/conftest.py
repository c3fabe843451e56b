"""Fixtures of the tests of the engine."""

import pytest

from flowkit import App, Channel
from tests.support.shop import Order, new_app


@pytest.fixture
def app() -> App:
    return new_app()


@pytest.fixture
def orders(app: App) -> Channel[Order]:
    return app.channel("orders", Order)
