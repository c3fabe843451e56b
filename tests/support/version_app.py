"""The app that tests run in versions: each effect says which version it is of. Version `bad` fails one order of ten."""

from sqlalchemy.orm import Session

from flowkit import Reject, web
from tests.support.shop import Effect, Order, new_app

app = new_app("front")
orders = web.post("/orders")


@app.flow(orders)
def accept(order: Order, db: Session) -> None:
    version = _version()
    if version == "bad" and order.name.endswith("7"):
        raise Reject("every tenth order is one too many")
    db.add(Effect(name=f"{order.name} {version}"))


def _version() -> str:
    return app.services().settings.version
