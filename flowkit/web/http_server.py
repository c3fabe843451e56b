"""The HTTP server of a worker process: it serves the ingress, and stops before the worker does."""

import logging
import os
import socket
import threading
from typing import Any

from flowkit.app import App
from flowkit.engine.versions import named
from flowkit.engine.worker import Worker
from flowkit.services import Services
from flowkit.web.ingress import Ingress
from flowkit.web.server import Server

ADMIN_SECONDS = 0.5
"""The longest wait for the answer to an operator, at the end."""
_log = logging.getLogger("flowkit.http")


class HttpServer:
    """Serves an app's routes beside its worker, and its operators, on sockets that its siblings share."""

    def __init__(self, app: App, services: Services, worker: Worker, descriptor: int, admin: int | None = None) -> None:
        """`descriptor` and `admin` are the open files of the sockets for clients, and for operators if there is one."""
        self._worker = worker
        self._leaving = threading.Event()
        self._closing = threading.Lock()
        self._ingress = Ingress(app, services, worker, self._why_not)
        self._server = _serve(self._ingress.asgi, descriptor, "flowkit-http")
        self._admin = None if admin is None else _serve(self._ingress.operators, admin, "flowkit-admin")

    def leave(self, drain: float, grace: float) -> None:
        """Be unready from now on. After `drain` seconds, in which balancers see it, take no more requests, and stop
        the worker when the last one is answered, at most `grace` seconds from now. Does not block."""
        self._leaving.set()
        threading.Thread(target=self._leave, args=(drain, grace), name="flowkit-leaving", daemon=True).start()

    def close(self, grace: float) -> None:
        """Take no more requests and answer those that came, at most for so long. Blocks."""
        self._leaving.set()
        with self._closing:
            if not self._server.close(grace):
                _log.error("requests were not answered within %g s; their connections are cut", grace)
            if self._admin is not None:
                self._admin.close(ADMIN_SECONDS)
            self._ingress.close()

    def _leave(self, drain: float, grace: float) -> None:
        self._worker.stopping.wait(drain)
        self.close(grace - drain)
        self._worker.stop()

    def _why_not(self) -> str:
        """Why no requests should come; empty while they may."""
        worker = self._worker
        if self._leaving.is_set():
            return "this instance is about to end"
        if worker.state != "ready":
            return f"this worker is {worker.readiness.condition}"
        if why := worker.directions.refuses():
            return f"app {worker.app.name} is {why}"
        if worker.versions.role == "none":
            return f"version {named(worker.versions.version)} has no share of the messages: see flowkit rollout"
        return "messages wait for a broker that takes none" if worker.relay.clogged else ""


def _serve(asgi: Any, descriptor: int, thread: str) -> Server:
    os.set_inheritable(descriptor, False)  # programs that handlers start are not to hold the port
    return Server(asgi, socket.socket(fileno=descriptor), thread)
