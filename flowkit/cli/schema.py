"""`flowkit db`: the schema of the store."""

from flowkit.errors import ConfigError
from flowkit.services import open_store
from flowkit.settings import Settings


def upgrade() -> None:
    """Run the migrations."""
    store = open_store(Settings.read(), check=False)
    try:
        print(f"schema {store.schema.upgrade()}")
    finally:
        store.close()


def adopt(apart: bool) -> None:
    """Make this database the place of its store, or, with `apart`, a store of its own."""
    store = open_store(Settings.read(), create=False)
    try:
        print(f"this database is store {store.place.adopt(apart)}")
    finally:
        store.close()


def check() -> int:
    """Print whether the schema is that of this version of FlowKit. Returns 1 if it is not."""
    store = open_store(Settings.read(), check=False, create=False)
    try:
        store.schema.check()
    except ConfigError as error:
        print(error)
        return 1
    finally:
        store.close()
    print("the schema is of this version")
    return 0
