"""The front of a worker process: the ingress, its server, and how they leave before the worker does."""

import logging
import os
import socket
import threading

from flowkit.app import App
from flowkit.config import Services
from flowkit.engine.versions import named
from flowkit.engine.worker import Worker
from flowkit.web.ingress import Ingress
from flowkit.web.server import Server

_log = logging.getLogger("flowkit.http")


class Front:
    """Serves an app's routes beside its worker, on the socket of an open file that its siblings share."""

    def __init__(self, app: App, services: Services, worker: Worker, descriptor: int) -> None:
        self._worker = worker
        self._leaving = threading.Event()
        self._closing = threading.Lock()
        self._ingress = Ingress(app, services, worker, self._why_not)
        os.set_inheritable(descriptor, False)  # programs that handlers start are not to hold the port
        self._server = Server(self._ingress.asgi, socket.socket(fileno=descriptor))

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
            return f"this worker is {worker.condition}"
        if why := worker.refuses():
            return f"app {worker.app.name} is {why}"
        if worker.versions.role == "none":
            return f"version {named(worker.versions.version)} has no share of the messages: see flowkit rollout"
        return "messages wait for a broker that takes none" if worker.relay.clogged else ""
