"""A flow that moves to another channel: in a rolling update two versions would take each other's subscription."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from flowkit import App, DefinitionError
from flowkit.cli.describe import check
from flowkit.services import connect
from flowkit.settings import Settings
from flowkit.testing import Harness
from tests.support.shop import Effect, Order, new_app, once


def version(channel: str, **options: Any) -> App:
    """The shop, whose flow receives from this channel."""
    app = new_app()
    app.channel("old", Order, optional=True, **options)
    app.channel("new", Order, optional=True)

    @app.flow(channel)
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=order.name))

    return app


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that several versions use."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/moves.db"
    found: str = request.getfixturevalue("postgresql_url")
    return found


def start(app: App, url: str) -> None:
    """What a program of the app does before it publishes, and a worker before it works."""
    services = connect(Settings(database_url=url))
    try:
        app.connect(services)
    finally:
        services.close()


def test_row_g1_a_move_in_a_rolling_update_is_refused_and_nothing_is_lost(url: str) -> None:
    with Harness(version("old"), url) as harness:
        with pytest.raises(DefinitionError) as refused:
            start(version("new"), url)
        assert str(refused.value) == (
            "flow shop.accept: it moves from channel old to channel new while workers of app shop run, which may "
            "receive from old; give the flow at new another name, @app.flow(…, name=…), and keep this one until "
            "nothing is sent to old; or let it finish its messages, stop all instances, and start the new ones"
        )
        harness.publish("old", Order(name="a"))
        harness.until_quiet()
        harness.publish("old", Order(name="b"))
    with pytest.raises(DefinitionError, match="to channel new while 1 message of it waits; give the flow at new"):
        start(version("new"), url)
    with Harness(version("old"), url) as harness:
        harness.until_quiet()
        once(harness, "a", "b")
    with Harness(version("new"), url) as harness:
        with pytest.raises(DefinitionError, match="moves from channel new to channel old while workers"):
            start(version("old"), url)
        harness.publish("new", Order(name="c"))
        harness.until_quiet()
        once(harness, "a", "b", "c")


def test_a_dead_worker_holds_up_no_move(url: str) -> None:
    harness = Harness(version("old"), url)
    harness.store.close()  # as its process ends: it takes no leave
    start(version("new"), url)
    start(version("new"), url)


def test_a_move_away_from_a_shared_channel_is_told(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with Harness(version("old", shared=True), url):
        pass
    start(version("new"), url)
    assert [record.message for record in caplog.records if "unbind the queue" in record.message] == [
        "flow shop.accept: it moves from the shared channel old to channel new, and its queue at RabbitMQ stays bound "
        "to exchange old: messages of other programs to it still reach the flow; unbind the queue"
    ]


def test_check_tells_of_a_move(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "moved.py"
    file.write_text("from tests.model.test_moves import version\n\napp = version('new')\n")
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", url)
    with Harness(version("old"), url), pytest.raises(DefinitionError, match="it moves from channel old to"):
        check(str(file))
