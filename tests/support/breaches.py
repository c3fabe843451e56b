"""What handlers do to the transaction that they were given."""

from sqlalchemy.orm import Session


def driver_commit(db: Session) -> None:
    db.flush()
    driver = db.connection().connection.driver_connection
    assert driver is not None
    driver.commit()
