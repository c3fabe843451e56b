"""The flows: they accept an order, reserve its goods in stock, invoice it, and mail the invoice.

orders.received → accept → orders.accepted → reserve → stock.reserved → invoice → invoices.issued → mail
stock.delivered → restock
"""

import os
from email.message import EmailMessage
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import BaseModel, Field, PositiveInt
from sqlalchemy import text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flowkit import App, Message, Reject, RetryPolicy, Routed


class Order(BaseModel):
    id: str
    item: str
    quantity: PositiveInt
    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")]


class Invoice(BaseModel):
    order: str
    email: str
    cents: int


class Delivery(BaseModel):
    item: str
    quantity: PositiveInt
    cents: PositiveInt  # price of one piece


class Base(DeclarativeBase): ...


class OrderRow(Base):
    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]
    quantity: Mapped[int]


class StockRow(Base):
    __tablename__ = "stock"
    item: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[int]
    cents: Mapped[int]


class InvoiceRow(Base):
    __tablename__ = "invoices"
    order: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]


class MailFile:
    """Stands for a mail server: a mail is a file in the folder SHOP_MAIL_DIR, named by its idempotency key."""

    def __init__(self) -> None:
        self._folder = Path(os.environ.get("SHOP_MAIL_DIR", "mail"))
        self._folder.mkdir(parents=True, exist_ok=True)
        self._flaky = bool(os.environ.get("SHOP_FLAKY_MAIL"))
        self._refused: set[str] = set()

    def send(self, key: str, mail: EmailMessage) -> None:
        """Send a mail. Further calls with the same key send it no second time."""
        if self._flaky and key not in self._refused:
            self._refused.add(key)
            raise ConnectionError("the mail server hung up")
        path = self._folder / f"{quote(key, safe='')}.eml"
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(mail.as_bytes())
        unfinished.replace(path)  # atomic, and the same mail when it is repeated


app = App("shop", metadata=Base.metadata)
app.provide(MailFile, MailFile)

received = app.channel("orders.received", Order)
accepted = app.channel("orders.accepted", Order)
reserved = app.channel("stock.reserved", Invoice)
issued = app.channel("invoices.issued", Invoice)
delivered = app.channel("stock.delivered", Delivery)


@app.flow(received, to=accepted)
def accept(order: Order, db: Session) -> Routed[Order]:
    """The row and the next message are one transaction. The key names the row that the next flow updates: batches sort
    by it, so that two workers do not deadlock."""
    db.add(OrderRow(id=order.id, item=order.item, quantity=order.quantity))
    return accepted(order, key=order.item)


@app.flow(accepted, to=reserved)
def reserve(order: Order, db: Session) -> Invoice:
    """One statement checks and takes the goods, so that no other order takes the last piece in between. Retries would
    not fill the stock: the order is a dead letter until an operator restocks and retries it."""
    cents = db.scalar(
        update(StockRow)
        .where(StockRow.item == order.item, StockRow.quantity >= order.quantity)
        .values(quantity=StockRow.quantity - order.quantity)
        .returning(StockRow.cents)
    )
    if cents is None:
        raise Reject(f"out of stock: {order.item}")
    return Invoice(order=order.id, email=order.email, cents=cents * order.quantity)


@app.flow(reserved, to=issued)
def invoice(invoice: Invoice, db: Session) -> Invoice:
    db.add(InvoiceRow(order=invoice.order, cents=invoice.cents))
    return invoice


@app.flow(issued, retry=RetryPolicy(first="200ms"))
def mail(invoice: Invoice, message: Message, server: MailFile) -> None:
    """No transaction covers a mail: after a crash it is sent again. The message keeps its id in every attempt, by which
    the server recognises a mail that it has already."""
    letter = EmailMessage()
    letter["To"] = invoice.email
    letter["Subject"] = f"Your order {invoice.order}"
    letter.set_content(f"Please pay {invoice.cents / 100:.2f}.")
    server.send(message.id, letter)


@app.flow(delivered)
def restock(delivery: Delivery, db: Session) -> None:
    db.execute(ADD_TO_STOCK, delivery.model_dump())


ADD_TO_STOCK = text("""
    INSERT INTO stock AS shelf (item, quantity, cents) VALUES (:item, :quantity, :cents)
    ON CONFLICT (item) DO UPDATE SET quantity = shelf.quantity + excluded.quantity, cents = excluded.cents""")
