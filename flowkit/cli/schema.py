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
    """Let this database be the place of its store, or a store of its own."""
    store = open_store(Settings.read(), create=False)
    try:
        print(f"this database is store {store.place.adopt(apart)}")
    finally:
        store.close()


def check() -> int:
    """Say whether the schema is this version's. Returns 1 when it is not."""
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
