"""Mistakes in an app, its tables and its settings: told of at the check and at the start, before any message."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, RootModel, model_validator
from sqlalchemy import Column, Integer, MetaData, Table, text

from flowkit import App, ConfigError, DefinitionError, RetryPolicy
from flowkit.cli.describe import check
from flowkit.cli.schema import upgrade
from flowkit.host import instance
from flowkit.services import connect, open_store
from flowkit.settings import Settings
from tests.support import ROOT
from tests.support.waiting import wait_until

APP = """
from flowkit import App
from tests.app.test_mistakes import tables

app = App("shop", metadata=tables("id", "Total"))

@app.flow("orders")
def accept(order: dict) -> None:
    pass
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The error of an app at the check, which is that at the start."""

    def told(source: str, error: type[Exception] = ConfigError) -> str:
        (tmp_path / "mistaken.py").write_text(source)
        with pytest.raises(error) as found:
            check(str(tmp_path / "mistaken.py"))
        return str(found.value)

    return told


def tables(*columns: str) -> MetaData:
    """The tables of an app, which has one in a version of its own."""
    metadata = MetaData()
    Table("orders", metadata, *(Column(name, Integer, primary_key=name == "id") for name in columns))
    return metadata


def test_a_table_that_lacks_a_column_is_told_of(
    database_url: str, monkeypatch: pytest.MonkeyPatch, told: Callable[..., str]
) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", database_url)
    upgrade()
    services = connect()
    store: Any = services.store
    tables("id").create_all(store.dialect.engine)
    why = (
        "app shop has columns that are not in the database of FLOWKIT_DATABASE_URL: orders.Total; add them by your "
        "migrations (ALTER TABLE … ADD COLUMN …): FlowKit changes no existing table"
    )
    assert told(APP) == why
    app = App("shop", metadata=tables("id", "Total"))
    app.flow("orders")(lambda order: None)
    with pytest.raises(ConfigError, match="columns that are not in"):
        instance.check(app, services)
    with store.dialect.engine.connect() as connection:
        connection.execute(text('ALTER TABLE orders ADD COLUMN "Total" integer'))
        connection.commit()
    instance.check(app, services)
    app.close()


def test_a_setting_that_is_misspelt_is_refused(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWKIT_DATABSE_URL", sqlite_url)
    why = "FLOWKIT_DATABSE_URL is no setting, and would do nothing; write FLOWKIT_DATABASE_URL"
    assert told(APP) == why
    app = App("shop")
    app.flow("orders")(lambda order: None)
    with pytest.raises(ConfigError, match=why):
        app.publish("orders", {})
    assert not (tmp_path / "flowkit.db").exists(), "nothing is accepted by a database that nobody meant"


def test_a_setting_that_nobody_knows_is_told_of(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "known.py").write_text(APP)
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", sqlite_url)
    monkeypatch.setenv("FLOWKIT_DATABASE_ULR", "")
    monkeypatch.setenv("FLOWKIT_SERVICE_PORT_HTTP", "80")  # as Kubernetes does for a service of that name
    monkeypatch.setenv("FLOWKIT_SHOP_PORT_80_TCP_ADDR", "10.0.0.1")
    why = "FLOWKIT_DATABASE_ULR is no setting, and does nothing; the nearest one is FLOWKIT_DATABASE_URL"
    check(str(tmp_path / "known.py"))
    assert capsys.readouterr().out == f"{why}\napp shop: 1 flows, 1 channels: 1 warnings\n"
    app = App("shop")
    app.flow("orders")(lambda order: None)
    services = connect()
    instance.check(app, services)
    app.close()
    assert caplog.messages == [why]


BROKEN = """
from flowkit import App
from broken_prices import rate

app = App("shop")
"""


def test_an_app_that_raises_at_its_import_is_told_of_with_the_place(tmp_path: Path, told: Callable[..., str]) -> None:
    (tmp_path / "broken_prices.py").write_text("def rate() -> float:\n    return 1 / 0\n\n\nRATE = rate()\n")
    assert told(BROKEN, DefinitionError).replace(f"{tmp_path}/", "") == (
        "mistaken.py cannot be imported: ZeroDivisionError: division by zero\n"
        "  mistaken.py, line 3, in <module>: from broken_prices import rate\n"
        "  broken_prices.py, line 5, in <module>: RATE = rate()\n"
        "  broken_prices.py, line 2, in rate: return 1 / 0\n"
        "fix it, and try again"
    )
    sys.modules.pop("broken_prices", None)
    (tmp_path / "broken_prices.py").write_text("def rate(:\n    pass\n")
    assert "  broken_prices.py, line 1: def rate(:\n" in told(BROKEN, DefinitionError).replace(f"{tmp_path}/", "")
    said = told("import sys\n\nsys.exit('no key')\n", DefinitionError)
    assert said.startswith(f"{tmp_path}/mistaken.py cannot be imported: SystemExit: no key\n")
    assert "mistaken.py, line 3, in <module>: sys.exit('no key')\n" in said
    said = told("import json\n\njson.loads('{')\n", DefinitionError)
    assert said.splitlines()[1:-1] == [f"  {tmp_path}/mistaken.py, line 3, in <module>: json.loads('{{')"], (
        "where the user's own code goes on, and not what it calls"
    )


@pytest.mark.processes
def test_a_reload_of_an_app_with_a_mistake_is_told_once_and_the_old_one_goes_on(
    sqlite_url: str, tmp_path: Path
) -> None:
    source = APP.replace(', "Total"', "")
    (tmp_path / "reloaded.py").write_text(source)
    environment = {**os.environ, "FLOWKIT_DATABASE_URL": sqlite_url, "PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    command = [sys.executable, "-m", "flowkit", "run", "reloaded.py", "--workers", "2"]
    with log.open("w") as errors:
        run = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=errors)
    store: Any = open_store(Settings(database_url=sqlite_url))
    try:
        wait_until(lambda: store.fleet.ready("shop") == 2)
        before = store.fleet.members()
        (tmp_path / "reloaded.py").write_text(f"{source}\n\nraise KeyError('PRICE_LIST')\n")
        run.send_signal(signal.SIGHUP)
        wait_until(lambda: "so no more are replaced: the old ones continue" in log.read_text())
        app = App("shop")
        app.channel("orders")
        app.connect(connect(Settings(database_url=sqlite_url)))
        app.publish("orders", {})
        wait_until(lambda: store.ledger.balances()["shop.accept"].applied == 1)
        app.close()
        assert store.fleet.members() == before
        said = log.read_text()
        assert said.count("reloaded.py cannot be imported: KeyError: 'PRICE_LIST'") == 1
        assert "in <module>: raise KeyError('PRICE_LIST')" in said
        (tmp_path / "reloaded.py").write_text(APP)  # whose table has a column more
        run.send_signal(signal.SIGHUP)
        wait_until(lambda: log.read_text().count("so no more are replaced: the old ones continue") == 2)
        assert store.fleet.members() == before
        said = log.read_text()
        assert said.count("columns that are not in the database of FLOWKIT_DATABASE_URL: orders.Total") == 1
        assert "Traceback" not in said
    finally:
        run.terminate()
        run.wait()
        store.close()
    assert run.returncode == 0


class Order(BaseModel):
    id: int


class Listed(RootModel[list[int]]):
    pass


class Anything(BaseModel):
    id: int

    @model_validator(mode="before")
    @classmethod
    def read(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, int) else value


FITTING: list[tuple[Any, Any]] = [
    (Order, dict), (dict, Order), (Order, Anything), (int, Anything), (int, float), (bool, int), (list[int], Listed),
    (str, Order), (str, int), (int, str), (int, bytes), (bytes, Order), (tuple[int, str], list), (Order | None, dict),
    (int, int | None), (Decimal, float), (datetime, str), (Any, int),
]  # fmt: skip
UNFIT: list[tuple[Any, Any]] = [(dict, int), (Order, int), (int, Order), (list, Order), (Order, set[int]), (bool, dict)]


@pytest.mark.parametrize(
    ("carried", "taken", "fits"), [(*one, True) for one in FITTING] + [(*one, False) for one in UNFIT]
)
def test_a_body_that_no_message_can_be_is_refused(carried: Any, taken: Any, fits: bool) -> None:
    app = App("shop")

    def accept(order: Any) -> None:
        pass

    accept.__annotations__["order"] = taken
    app.flow(app.channel("orders", carried))(accept)
    if fits:
        app.check()
        return
    with pytest.raises(
        DefinitionError, match=r"flow shop\.accept: its body is .*, and channel orders carries .*: no mess"
    ):
        app.check()


@pytest.mark.parametrize(
    ("returned", "carried", "fits"),
    [
        (str, int, False), (str, dict, False), (bytes, str, False), (str, bytes, False), (list, dict, False),
        (list[int], Order, False), (dict[str, int], list[int], False), (str, str, True), (str, UUID, True),
        (str, Any, True), (str | None, str, True), (list[int], list[int], True), (list[int], set[int], True),
        (dict[str, int], Order, True), (bytes, bytes, True), (str, Annotated[str, Field(max_length=5)], True),
        (Iterator[int], dict, False), (Iterator[int], int, True),
    ],
)  # fmt: skip
def test_a_return_value_that_its_channel_never_carries_is_refused(returned: Any, carried: Any, fits: bool) -> None:
    app = App("shop")

    def accept(order: dict[str, int]) -> Any:
        pass

    accept.__annotations__["return"] = returned
    app.flow("orders", to=app.channel("next", carried, optional=True))(accept)
    if fits:
        app.check()
        return
    with pytest.raises(DefinitionError, match=r"flow shop\.accept: it returns .*, but channel next carries"):
        app.check()


def test_a_channel_that_is_named_by_text_beside_a_declared_one_is_refused() -> None:
    app = App("shop")
    app.flow("orders.recieved", name="accept")(lambda order: None)
    app.channel("orders.received", Order)
    app.channel("customers", Order)
    why = (
        "flow shop.accept: it receives from channel orders.recieved, which only this text names, and no flow receives "
        "from the declared channel orders.received; write that name, or declare the other one too: "
        "app.channel('orders.recieved', …)"
    )
    with pytest.raises(DefinitionError) as found:
        app.check()
    assert str(found.value) == why
    app.check(subscribed={"orders.received": ["billing.book"]})  # a flow of another app is who receives from it
    with pytest.raises(DefinitionError, match="which only this text names"):
        app.check(subscribed={"orders.received": ["shop.accept"]})  # as before the mistake


def test_a_channel_that_is_named_by_text_and_is_like_none_is_no_mistake() -> None:
    app = App("shop")
    app.channel("payments", Order, optional=True)
    orders = app.channel("orders.received", Order)
    app.flow("orders.refused", name="refuse")(lambda order: None)
    app.flow(orders, name="accept")(lambda order: None)
    app.flow("orders.received", name="log")(lambda order: None)
    app.check()
    declared = App("shop")
    declared.channel("orders.recieved", Order)
    declared.channel("orders.received", Order)
    declared.flow("orders.recieved", name="accept")(lambda order: None)
    declared.check()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://flowkit.db", "sqlite:flowkit.db", "sqlite:/a.db"]
)
def test_a_setting_that_names_no_file_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Each process would have a database in its memory: `flowkit send` would print an id, and lose the message."""
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", url)
    with pytest.raises(ConfigError) as found:
        Settings.read()
    assert str(found.value) == (
        f"FLOWKIT_DATABASE_URL is {url}, which names no file: what is in memory ends with its process; write "
        "sqlite:///file.db, with three slashes, or sqlite:////folder/file.db"
    )


@pytest.mark.parametrize("name", ["DATABASE", "BROKER", "DRAIN", "BROKER_MANAGEMENT"])
@pytest.mark.parametrize("secret", ["cana@ry", "cana/ry"])
def test_a_password_that_is_not_quoted_is_told_to_nobody(
    monkeypatch: pytest.MonkeyPatch, name: str, secret: str
) -> None:
    """The rest of it would be taken for the host, which errors name."""
    monkeypatch.setenv(f"FLOWKIT_{name}_URL", f"scheme://user:{secret}@localhost/place")
    with pytest.raises(ConfigError, match=f"FLOWKIT_{name}_URL: .* write @ as %40") as found:
        Settings.read()
    assert "ry" not in str(found.value)


def test_a_setting_without_a_value_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_DATABASE_URL", "")
    with pytest.raises(ConfigError, match="FLOWKIT_DATABASE_URL is empty; unset it, or write sqlite:///"):
        Settings.read()


def test_a_wrong_setting_is_told_with_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWKIT_THREADS", "many")
    with pytest.raises(ConfigError, match="FLOWKIT_THREADS: 'many': Input should be a valid integer"):
        Settings.read()


def test_a_decorator_without_its_channel_is_told() -> None:
    """It would make no flow, and say nothing beside one that is right."""
    app = App("shop")
    why = r"@app.flow is written without a channel before accept; write @app.flow\(channel\)"
    with pytest.raises(DefinitionError, match=why):

        @app.flow  # type: ignore[arg-type]
        def accept(order: dict[str, Any]) -> None:
            pass


def test_a_channel_that_is_declared_otherwise_is_told_with_the_difference() -> None:
    app = App("shop")
    app.channel("orders", int)
    with pytest.raises(DefinitionError, match="orders is declared twice, as int and as str; declare it once"):
        app.channel("orders", str)
    with pytest.raises(DefinitionError, match="orders is declared twice, as int and as int, shared=True; declare"):
        app.channel("orders", int, shared=True)


def test_a_definition_that_is_wrong_is_told_with_its_place(told: Callable[..., str], tmp_path: Path) -> None:
    """It is one of many, and not each names its flow."""
    source = f"{APP}\nfrom flowkit import RetryPolicy\napp.flow('more', retry=RetryPolicy(first='1 second'))\n"
    assert told(source, DefinitionError) == (
        'RetryPolicy(first=) is \'1 second\'; write a number with its unit, such as "30s" or "1h30m"\n'
        f"  {tmp_path}/mistaken.py, line {source.count(chr(10))}, in <module>: "
        "app.flow('more', retry=RetryPolicy(first='1 second'))"
    )


def test_a_duration_of_another_kind_is_told_with_what_can_be_written() -> None:
    with pytest.raises(DefinitionError, match=r"RetryPolicy\(first=\) is None; write a timedelta, seconds, or text"):
        RetryPolicy(first=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("foreign", "other programs' messages have that source"),
        ("a" * 256, "at most 255"),
        *((name, "only letters, digits, - and _") for name in ("a:b", "a/b", "a@b", "a.b", "a\n")),
    ],
)
def test_an_app_whose_name_gives_its_identities_to_others_is_refused(name: str, why: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(why)):
        App(name)


@pytest.mark.parametrize("name", ["accept@candidate", "accept@candidate.again"])
def test_a_flow_whose_name_is_the_address_of_another_flow_is_refused(name: str) -> None:
    """What is addressed to it would be taken by workers of the other one, and counted in that ledger."""
    with pytest.raises(DefinitionError, match=r"shop\.accept@candidate.*: @candidate is the address of a version"):
        App("shop").flow("orders", name=name)(lambda order: None)
