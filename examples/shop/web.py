"""A web application beside the flows: it stores a request and publishes its order in one transaction."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pydantic import ValidationError
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from examples.shop.flows import Base, Order, app, received
from flowkit import sqlite_driver
from flowkit.settings import Settings


class RequestRow(Base):
    __tablename__ = "requests"
    order: Mapped[str] = mapped_column(primary_key=True)
    message: Mapped[str]


def open_engine() -> Engine:
    """The application's own engine, on the database of FlowKit."""
    url = make_url(Settings.read().database_url)
    if url.get_backend_name() == "sqlite":
        return create_engine(url, module=sqlite_driver())  # a second SQLite library would break the first one's locks
    return create_engine(url.set(drivername="postgresql+psycopg"))


def take(engine: Engine, order: Order) -> str:
    """Store the request and publish its order: both or neither. Returns the message's id."""
    with Session(engine) as db:
        message = app.outbox(db).send(received, order)
        db.add(RequestRow(order=order.id, message=message))
        db.commit()
    return message


class Server(ThreadingHTTPServer):
    """Serves on localhost. Port 0 stands for a free port."""

    def __init__(self, port: int) -> None:
        self.engine = open_engine()
        app.services()  # connects now, so that a wrong setting is reported at the start
        super().__init__(("localhost", port), Handler)

    def server_close(self) -> None:
        super().server_close()
        self.engine.dispose()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/orders":
            self.answer(404, error="POST orders to /orders")
            return
        try:
            message = take(self.server.engine, Order.model_validate_json(body))
        except ValidationError as error:
            self.answer(400, error=str(error))
        except IntegrityError:
            self.answer(400, error="there is an order with this id")
        else:
            self.answer(202, message=message)

    def answer(self, status: int, **fields: str) -> None:
        body = json.dumps(fields).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    try:
        with Server(8000) as server:
            print("POST orders to http://localhost:8000/orders")
            server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        app.close()


if __name__ == "__main__":
    main()
