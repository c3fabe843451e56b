"""The flows: they validate rows, split flown from cancelled flights, count them, and raise alerts for long delays.

flights.read → validate → flights.valid → split ┬→ flights.flown → statistics → flights.alerts → alert
                                                └→ flights.cancelled → cancellations
"""

from datetime import date
from typing import Annotated

from pydantic import BaseModel, BeforeValidator
from sqlalchemy import Date, bindparam, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flowkit import App, Reject, Routed

ALERT_MINUTES = 120
Known = Annotated[int | None, BeforeValidator(lambda value: None if value == "NA" else value)]


class Row(BaseModel):
    """A row of the file: numbers are text, and unknown values are NA. Columns that no flow needs are ignored."""

    year: int
    month: int
    day: int
    dep_time: Known
    dep_delay: Known
    carrier: str
    flight: int


class Flight(BaseModel):
    carrier: str
    number: int
    day: date
    delay: int | None  # in minutes; None: cancelled


class Flown(Flight):
    delay: int


class Base(DeclarativeBase): ...


class FlownDay(Base):
    __tablename__ = "flights_flown"
    carrier: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    flights: Mapped[int]
    delay: Mapped[int]  # of all its flights together
    most: Mapped[int]


class CancelledDay(Base):
    __tablename__ = "flights_cancelled"
    carrier: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    flights: Mapped[int]


class Alert(Base):
    __tablename__ = "flights_alerts"
    id: Mapped[int] = mapped_column(primary_key=True)
    carrier: Mapped[str]
    number: Mapped[int]
    day: Mapped[date]
    delay: Mapped[int]


DAY = bindparam("day", type_=Date)
COUNT_FLOWN = text("""
    INSERT INTO flights_flown AS total (carrier, day, flights, delay, most) VALUES (:carrier, :day, 1, :delay, :delay)
    ON CONFLICT (carrier, day) DO UPDATE SET flights = total.flights + 1, delay = total.delay + excluded.delay,
    most = CASE WHEN excluded.most > total.most THEN excluded.most ELSE total.most END""").bindparams(DAY)
COUNT_CANCELLED = text("""
    INSERT INTO flights_cancelled AS total (carrier, day, flights) VALUES (:carrier, :day, 1)
    ON CONFLICT (carrier, day) DO UPDATE SET flights = total.flights + 1""").bindparams(DAY)

app = App("flights", metadata=Base.metadata)
read = app.channel("flights.read", dict[str, str])
valid = app.channel("flights.valid", Flight)
flown = app.channel("flights.flown", Flown)
cancelled = app.channel("flights.cancelled", Flight)
alerts = app.channel("flights.alerts", Flown)


@app.flow(read, to=valid)
def validate(row: Row) -> Flight:
    """Reject rows with impossible values. A malformed row becomes a dead letter before this runs."""
    if (row.dep_time is None) != (row.dep_delay is None):
        raise Reject("a departure has both a time and a delay, or neither")
    try:
        day = date(row.year, row.month, row.day)
    except ValueError as error:
        raise Reject(f"there is no such day: {error}") from error
    return Flight(carrier=row.carrier, number=row.flight, day=day, delay=row.dep_delay)


@app.flow(valid, to=[flown, cancelled])
def split(flight: Flight) -> Routed[Flown] | Routed[Flight]:
    """The key names the row that the next flow updates: batches sort by it, so that they do not deadlock."""
    key = f"{flight.carrier} {flight.day}"
    if flight.delay is None:
        return cancelled(flight, key=key)
    return flown(Flown(**dict(flight)), key=key)


@app.flow(flown, to=alerts)
def statistics(flight: Flown, db: Session) -> Flown | None:
    """Count a flight. Counts, alert and the claim of this message are one transaction, so no crash counts it twice."""
    db.execute(COUNT_FLOWN, {"carrier": flight.carrier, "day": flight.day, "delay": flight.delay})
    return flight if flight.delay > ALERT_MINUTES else None


@app.flow(cancelled)
def cancellations(flight: Flight, db: Session) -> None:
    db.execute(COUNT_CANCELLED, {"carrier": flight.carrier, "day": flight.day})


@app.flow(alerts)
def alert(flight: Flown, db: Session) -> None:
    db.add(Alert(carrier=flight.carrier, number=flight.number, day=flight.day, delay=flight.delay))
