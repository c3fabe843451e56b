"""The scene of chaos: its services, and the faults that can strike them."""

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Protocol

from flowkit import sqlite_driver
from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.transports.rabbitmq.queues import Queues
from tests.chaos.oracle import FLOWS
from tests.services import cluster
from tests.services.pair import Pair, Takeover
from tests.services.postgresql import PostgreSQL
from tests.services.proxy import Proxy
from tests.services.rabbitmq import RabbitMQ

HEARTBEAT_SECONDS = 3
DISK_BYTES = 512 << 20
UNMOUNT_SECONDS = 30.0
COMMIT_SECONDS = 60.0
BEHIND_SECONDS = (0.1, 1.5)
"""For so long a lagging standby has got nothing when it takes over."""


class Scene(Protocol):
    """Services under chaos."""

    url: str
    """Of the database, past everything that breaks."""
    broker_url: str
    environment: dict[str, str]
    """The settings of workers and clients."""
    faithful: bool
    """Whether acknowledged commits survive; where not, the ledger need not add up."""
    faults: dict[str, Callable[[], None]]
    """What breaks a service and mends it again, by name. Each blocks for as long as it is broken."""
    takeovers: Sequence[Takeover]
    """Of the database, in their order."""

    def close(self) -> None: ...


class Sqlite:
    """A database on a small disk in memory of its own, where that can be had."""

    broker_url = ""
    faithful: bool = True
    takeovers: Sequence[Takeover] = ()

    def __init__(self, drawn: random.Random) -> None:
        self._drawn = drawn
        self.home = Path(tempfile.mkdtemp(prefix="flowkit-chaos-"))
        self._disk = self.home / "disk"
        self._disk.mkdir()
        self.faults: dict[str, Callable[[], None]] = {"lock": self.lock}
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", self._disk], capture_output=True, check=False
        )
        self._mounted = mounted.returncode == 0
        if self._mounted:
            self.faults["disk full"] = self.fill
        self._path = self._disk / "flowkit.db"
        self.url = f"sqlite:///{self._path}"
        self.environment = {"FLOWKIT_DATABASE_URL": self.url, "FLOWKIT_BROKER_URL": "", "FLOWKIT_LEASE": "3"}

    def lock(self) -> None:
        """Another program writes, and takes its time."""
        with closing(sqlite_driver().connect(self._path, isolation_level=None, timeout=30)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(self._drawn.uniform(0.1, 2))
            connection.execute("ROLLBACK")

    def fill(self) -> None:
        """The disk is full for a while."""
        ballast = self._disk / "ballast"
        with ballast.open("wb") as file:
            for _ in range(20):  # what workers write and free meanwhile is taken too
                free = shutil.disk_usage(self._disk).free
                try:
                    if free:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)
                except OSError:  # somebody was quicker
                    continue
                time.sleep(self._drawn.uniform(0.02, 0.1))
        ballast.unlink()

    def close(self) -> None:
        if self._mounted:
            end = time.monotonic() + UNMOUNT_SECONDS
            while subprocess.run(["umount", self._disk], check=False).returncode:  # what was killed lets go of it
                assert time.monotonic() < end, f"{self._disk} is still in use"
                time.sleep(0.1)
        shutil.rmtree(self.home)


class Broker:
    """RabbitMQ and PostgreSQL, one of each, behind proxies that cut, hold back and lose what passes."""

    faithful: bool = True
    takeovers: Sequence[Takeover] = ()

    def __init__(self, drawn: random.Random) -> None:
        self._drawn = drawn
        self._stack = stack = ExitStack()
        with ExitStack() as undo:
            self._database = undo.enter_context(closing(PostgreSQL()))
            self._broker = undo.enter_context(closing(RabbitMQ()))
            self._database.start()
            self._broker.start()
            self._to_database = undo.enter_context(Proxy("127.0.0.1", self._database.port))
            self._to_broker = undo.enter_context(Proxy("127.0.0.1", self._broker.port))
            stack.push(undo.pop_all())
        self.url = self._database.create_database("chaos")
        self.broker_url = self._broker.url()
        self.environment = {
            "FLOWKIT_DATABASE_URL": self._database.url("chaos", self._to_database.port),
            "FLOWKIT_BROKER_URL": f"{self._broker.url(self._to_broker.port)}?heartbeat={HEARTBEAT_SECONDS}",
            "FLOWKIT_LEASE": "5",
        }
        self.faults: dict[str, Callable[[], None]] = {
            "database cut": self._to_database.cut,
            "database cut before commit": lambda: self._cut_commit(forward=False),
            "database cut after commit": lambda: self._cut_commit(forward=True),
            "broker cut": self._to_broker.cut,
            "database silent": lambda: self._silence(self._to_database),
            "broker silent": lambda: self._silence(self._to_broker),
            "database restart": self._restart_database,
            "broker restart": self._broker.restart,
            "broker alarm": self._alarm,
        }

    def _cut_commit(self, forward: bool) -> None:
        """The next commit is cut off: before the server got it, or before the client got its answer."""
        before, end = self._to_database.cuts, time.monotonic() + COMMIT_SECONDS
        self._to_database.cut_when(b"COMMIT\0", forward)
        while self._to_database.cuts == before:
            assert time.monotonic() < end, "nobody commits"
            time.sleep(0.01)

    def _silence(self, proxy: Proxy) -> None:
        """Nothing passes, and no connection ends; then all is delivered, or all is lost."""
        proxy.blackhole()
        time.sleep(self._drawn.uniform(0.5, 6))
        if self._drawn.random() < 0.5:
            proxy.cut()
        proxy.forward()

    def _restart_database(self) -> None:
        self._database.stop(self._drawn.choice(("fast", "immediate", "immediate")))
        time.sleep(self._drawn.uniform(0, 2))
        self._database.start()

    def _alarm(self) -> None:
        """The broker has no memory left: it blocks publishers."""
        self._broker.ctl("set_vm_memory_high_watermark", "0.000001")
        time.sleep(self._drawn.uniform(1, 4))
        self._broker.ctl("set_vm_memory_high_watermark", "0.4")

    def close(self) -> None:
        self._to_database.forward()
        self._to_broker.forward()
        self._stack.close()


class Cluster:
    """Three nodes of RabbitMQ, which die and are cut off from each other. Nothing happens to PostgreSQL.

    Where hosts and clients are connected is their own chance: on the minority's side now and then.
    """

    faithful: bool = True
    takeovers: Sequence[Takeover] = ()

    def __init__(self, drawn: random.Random) -> None:
        self._drawn = drawn
        self._stack = stack = ExitStack()
        with ExitStack() as undo:
            self._database = undo.enter_context(closing(PostgreSQL()))
            self._cluster = undo.enter_context(closing(cluster.Cluster()))
            self._database.start()
            self._cluster.start()
            stack.push(undo.pop_all())
        self.url = self._database.create_database("chaos")
        self.broker_url = self._cluster.url()
        self.environment = {
            "FLOWKIT_DATABASE_URL": self.url,
            "FLOWKIT_BROKER_URL": f"{self.broker_url}?heartbeat={HEARTBEAT_SECONDS}",
            "FLOWKIT_LEASE": "5",
        }
        self.faults: dict[str, Callable[[], None]] = {
            "broker leader killed": self._kill_leader,
            "broker minority": self._part,
            "broker majority lost": self._lose_majority,
        }

    def _leader(self) -> RabbitMQ:
        """The node that leads the queue of one of the flows."""
        with closing(open_store(Settings(database_url=self.url))) as store:
            return self._cluster.leader(Queues(store.identity()).name(self._drawn.choice(FLOWS)))

    def _kill_leader(self) -> None:
        self._leader().kill()
        time.sleep(self._drawn.uniform(0, 4))
        self._cluster.start()

    def _part(self) -> None:
        """One node sees the others no more: clients on both sides, or on the others' only. Shorter and longer than it
        takes them to notice."""
        node = self._drawn.choice([self._leader(), *self._cluster.nodes])
        self._cluster.part(node, clients=self._drawn.random() < 0.7)
        time.sleep(self._drawn.choice((10, 10, 30)))
        self._cluster.start()

    def _lose_majority(self) -> None:
        """Two nodes die, or none sees another one."""
        kills = self._drawn.random() < 0.5
        for node in self._drawn.sample(self._cluster.nodes, 2):
            node.kill() if kills else self._cluster.part(node)
        time.sleep(self._drawn.uniform(2, 15))
        self._cluster.start()

    def close(self) -> None:
        self._stack.close()


class Failover:
    """PostgreSQL with a synchronous standby, which takes over again and again. The flows' queues are there too."""

    broker_url = ""
    faithful: bool = True

    def __init__(self, drawn: random.Random, synchronous: bool = True) -> None:
        self._drawn = drawn
        self._pair = Pair(synchronous)
        self.takeovers: Sequence[Takeover] = self._pair.takeovers
        self.url = self._pair.create_database("chaos")
        self.environment = {"FLOWKIT_DATABASE_URL": self.url, "FLOWKIT_BROKER_URL": "", "FLOWKIT_LEASE": "5"}
        self.faults: dict[str, Callable[[], None]] = {
            "database killed": self._pair.failover,
            "database stale": lambda: self._pair.failover(stale_seconds=self._drawn.uniform(0.1, 1.5)),
            "database frozen": lambda: self._pair.failover(frozen_seconds=self._drawn.uniform(1, 20)),
        }

    def close(self) -> None:
        self._pair.close()


class Lagging(Failover):
    """The same with an asynchronous standby, which is behind when the primary dies: what that costs is measured."""

    faithful = False

    def __init__(self, drawn: random.Random) -> None:
        super().__init__(drawn, synchronous=False)
        self.faults = {
            "database killed": lambda: self._pair.failover(behind_seconds=self._drawn.uniform(*BEHIND_SECONDS))
        }
