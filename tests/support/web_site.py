"""A worker that serves HTTP in the process of the test, and the app that most tests of HTTP serve."""

import asyncio
import os
import threading
from typing import Any

import httpx2
from sqlalchemy.orm import Session

from flowkit import App, Objects, Reject, web
from flowkit.engine.worker import Worker
from flowkit.host.sockets import listen
from flowkit.services import Services, connect, open_store
from flowkit.settings import Settings
from flowkit.web.http_server import HttpServer
from tests.support.shop import Base, Effect, Order, effects
from tests.support.waiting import wait_until

SECONDS = 30.0


def shop() -> App:
    app = App("shop", metadata=Base.metadata)

    @app.flow(web.post("/orders", status="public"))
    def accept(order: Order, db: Session) -> None:
        db.add(Effect(name=f"accept {order.name}"))

    @app.flow(web.put("/customers/{customer}/orders/{number}"))
    def change(
        order: Order, customer: str, number: int, db: Session, tags: list[str] | None = None, urgent: bool = False
    ) -> None:
        db.add(Effect(name=f"{customer} {number} {order.name} {tags} {urgent}"))

    @app.flow(web.delete("/orders/{number}"))
    def cancel(number: int, db: Session) -> None:
        db.add(Effect(name=f"cancel {number}"))

    @app.flow(web.post("/quotes", reply=True))
    def quote(order: Order, db: Session) -> dict[str, str]:
        """What an order costs."""
        db.add(Effect(name=f"quote {order.name}"))
        if order.deed == "reject":
            raise Reject("no")
        return {"for": order.name}

    @app.flow(web.get("/quotes/{number}", reply="20ms"))
    async def look(number: int, objects: Objects, slow: bool = False) -> int:
        await asyncio.sleep(0.5 if slow else 0)
        return 2 * number

    @app.flow(web.post("/few", rate=2))
    def few(order: Order) -> None: ...

    @app.flow(web.post("/notes", status="public"))
    def note(text: str, db: Session) -> None:
        db.add(Effect(name=f"note {text}"))

    return app


class Site:
    """A worker with its HTTP server, in this process."""

    def __init__(self, url: str, app: App) -> None:
        settings = Settings(database_url=url)
        store = open_store(settings, check=False)
        store.schema.upgrade()
        Base.metadata.create_all(store.dialect.engine)
        store.close()
        self.services: Services = connect(settings)
        self.store: Any = self.services.store
        self.worker = Worker(app, self.services)
        self.listening = listen("127.0.0.1:0", "--http")
        self.operators = listen("127.0.0.1:0", "--admin")
        sockets = [os.dup(one.fileno()) for one in (self.listening, self.operators)]
        self.server = HttpServer(app, self.services, self.worker, *sockets)
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()
        host, port = self.listening.getsockname()
        self.port: int = port
        self.client = httpx2.Client(base_url=f"http://{host}:{port}", timeout=SECONDS)
        self.admin = httpx2.Client(base_url=f"http://{host}:{self.operators.getsockname()[1]}", timeout=SECONDS)
        wait_until(lambda: self.worker.state == "ready")

    def effects(self) -> dict[str, int]:
        with Session(self.store.dialect.engine) as session:
            return effects(session)

    def close(self) -> None:
        self.client.close()
        self.admin.close()
        self.server.close(SECONDS)
        self.worker.stop()
        self.thread.join(SECONDS)
        self.listening.close()
        self.operators.close()
        self.services.close()


JSON = {"content-type": "application/json"}
