"""A broker that is not set up as FlowKit needs it, and messages that no FlowKit made."""

from flowkit import App
from flowkit.engine.worker import Worker
from flowkit.services import connect
from flowkit.settings import Settings
from tests.support.shop import Order

# ------------------------------------------------------------ settings


def shop(*channels: str) -> App:
    """An app whose flows do nothing."""
    app = App("shop")
    for name in channels or ("orders",):
        app.flow(app.channel(name, Order), name=name)(lambda order: None)
    return app


def start(app: App, url: str, broker_url: str) -> Worker:
    """A worker, which closes what it opened when it cannot start."""
    services = connect(Settings(database_url=url, broker_url=broker_url))
    try:
        return Worker(app, services)
    except BaseException:
        services.close()
        raise


GOOD = b'{"name": "a"}'
