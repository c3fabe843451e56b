"""Answers to clients: the replies to their requests, and the states of their messages."""

from collections.abc import Collection

from pydantic_core import to_json

from flowkit.ports import Asked, Identity
from flowkit.store import tables
from flowkit.store.database import Database


class Answers:
    """Implements ports.Answers. Every call blocks; any thread may call it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def replies(self, app: str, requests: Collection[Asked]) -> dict[Asked, bytes]:
        with self._database.unit("") as unit:
            rows = unit.read(self._database.sql.get_replies, (to_json([(app, *one) for one in requests]).decode(),))
        return {Asked(*asked): bytes(reply) for *asked, reply in rows}

    def states(self, identities: Collection[Identity]) -> dict[Identity, str]:
        with self._database.unit("") as unit:
            rows = unit.read(self._database.sql.look, (to_json(sorted(identities)).decode(),))
        return {(flow, source, id): tables.STATES[state] for flow, source, id, state, *_ in rows}
