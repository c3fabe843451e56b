"""Instances in processes of their own, and clients that send to them all the time."""

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy.orm import Session

from flowkit.services import open_store
from flowkit.settings import Settings
from flowkit.web import balancer
from tests.services import free_port
from tests.services.balancer import Balancer
from tests.support import ROOT
from tests.support.shop import Base, effects
from tests.support.waiting import wait_until
from tests.support.web_app import app

SECONDS = 60.0


class Instances:
    """Instances of the app on one database."""

    def __init__(self, url: str) -> None:
        self.app = "tests.support.web_app:app"
        self.environment = {**os.environ, "FLOWKIT_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
        self.store: Any = open_store(Settings(database_url=url), check=False)
        self.store.schema.upgrade()
        Base.metadata.create_all(self.store.dialect.engine)
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *options: str) -> int:
        """Start one; returns its port. It may not be ready yet."""
        port = free_port()
        command = [*self.command, "--http", f"127.0.0.1:{port}", "--admin", "none", *options]
        self.running[port] = subprocess.Popen(command, env=self.environment, cwd=ROOT, start_new_session=True)
        return port

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "flowkit", "run", self.app]

    def ready(self, port: int) -> bool:
        try:
            return request(port, "GET", "/readyz")[0] == 200
        except OSError:
            return False

    def kill(self, port: int) -> None:
        """End one as if its host died: the supervisor and its workers at once, by their session."""
        process = self.running.pop(port)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *map(int, workers)):
            os.kill(pid, signal.SIGKILL)
        process.wait()

    def end(self, port: int) -> int:
        """End one in order; returns its exit status."""
        process = self.running.pop(port)
        process.terminate()
        return process.wait(SECONDS)

    def workers(self) -> set[str]:
        """The workers that are ready, by the store."""
        return {one.id for one in self.store.ledger.workers() if one.state == "ready"}

    def applied(self) -> dict[str, int]:
        with Session(self.store.dialect.engine) as session:
            return effects(session)

    def check(self, clients: "Clients") -> None:
        """Whatever was accepted takes effect once, and nothing else does."""
        wait_until(lambda: self.store.ledger.unfinished(list(app.flows)) == 0)
        applied = self.applied()
        assert not set(clients.accepted) - set(applied), "what was accepted was lost"
        assert not {name: count for name, count in applied.items() if count > 1}, "something took effect twice"
        assert not set(applied) - set(clients.sent)
        for flow, balance in self.store.ledger.balances().items():
            assert balance.balanced, f"{flow}: {balance}"

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(SECONDS)
        self.store.close()


class Clients:
    """Clients that post one order after the other, each on a connection that it keeps."""

    def __init__(self, port: int, many: int = 8) -> None:
        self._port = port
        self._stopping = threading.Event()
        self.sent: list[str] = []
        self.accepted: list[str] = []
        self.failed: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._live, args=(number,)) for number in range(many)]
        for thread in self._threads:
            thread.start()

    def go_on(self, many: int = 200) -> None:
        """Return when so many more were accepted."""
        reached = len(self.accepted) + many
        wait_until(lambda: len(self.accepted) >= reached)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def _live(self, client: int) -> None:
        number = 0
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=SECONDS)) as connection:
            while not self._stopping.is_set():
                name = f"{client}-{(number := number + 1)}"
                self.sent.append(name)
                try:
                    connection.request("POST", "/orders", to_json({"name": name}), {"content-type": "application/json"})
                    answer = connection.getresponse()
                    content = answer.read()
                except (OSError, http.client.HTTPException) as error:
                    self.failed[repr(error)] += 1
                    connection.close()
                    continue
                if answer.status == 202:
                    self.accepted.append(name)
                else:
                    self.failed[f"{answer.status} {content[:200]!r}"] += 1


def request(port: int, method: str, path: str, content: bytes = b"") -> tuple[int, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
        connection.request(method, path, content, {"content-type": "application/json"} if content else {})
        answer = connection.getresponse()
        content = answer.read()
    return answer.status, from_json(content) if "json" in answer.headers.get("content-type", "") else content


def before(lb: tuple[str, Balancer], ports: list[int]) -> Balancer:
    """A balancer that runs before these instances, with the configuration that FlowKit prints."""
    kind, made = lb
    found = [balancer.Instance("127.0.0.1", port) for port in ports]
    listen = f"127.0.0.1:{made.port}"
    configuration = balancer.haproxy(found, listen, None) if kind == "haproxy" else balancer.nginx(found, listen)
    assert made.configure(configuration) == ""
    made.start()
    return made
