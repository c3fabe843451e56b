"""A PostgreSQL primary with a standby: failovers that lose nothing, and failovers that lose commits."""

import time
from contextlib import ExitStack, closing
from typing import NamedTuple
from urllib.parse import urlencode

from tests.services.postgresql import PostgreSQL

STREAMING_SECONDS = 60.0


class Takeover(NamedTuple):
    """When, in seconds since the epoch."""

    died: float
    """The old primary answered no more."""
    promoted: float
    """The standby was about to become the primary."""


class Pair:
    """Two servers, one of them the primary. Not thread-safe. Call `close` in the end."""

    def __init__(self, synchronous: bool) -> None:
        """`synchronous`: a commit is acknowledged when the standby has it, and waits while there is no standby."""
        self.takeovers: list[Takeover] = []
        with ExitStack() as undo:
            self.primary = undo.enter_context(closing(PostgreSQL()))
            self.primary.start()
            if synchronous:
                # In the data directory, and so with every copy of it: a promoted standby waits for the next one.
                self.primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            self.standby = undo.enter_context(closing(PostgreSQL(self.primary)))
            self.standby.start()
            self._stack = undo.pop_all()
        self.primary.execute("SELECT pg_reload_conf()")
        self._synchronous = synchronous
        self.wait_for_standby()

    def url(self, database: str) -> str:
        """The URL of whichever is the primary."""
        servers = sorted((self.primary, self.standby), key=lambda server: server.port)
        hosts = [("host", f"127.0.0.1:{server.port}") for server in servers]
        base = self.primary.url(database).replace(f"@127.0.0.1:{self.primary.port}", "@")
        return f"{base}?{urlencode([*hosts, ('target_session_attrs', 'read-write')], safe=':')}"

    def create_database(self, name: str) -> str:
        self.primary.create_database(name)
        return self.url(name)

    def failover(self, stale_seconds: float = 0.0, behind_seconds: float = 0.0, frozen_seconds: float = 0.0) -> None:
        """The primary dies, the standby takes its place, and what was the primary comes back as the standby.

        With `behind_seconds` the standby had got nothing for so long. With `stale_seconds` the primary only froze: it
        goes on for so long, and does not know that it was replaced. With `frozen_seconds` it stays so, with its
        connections open.
        """
        old, new = self.primary, self.standby
        if behind_seconds:
            new.pause()
            time.sleep(behind_seconds)
        if stale_seconds or frozen_seconds:
            old.pause()
        else:
            old.stop("immediate")
        died = time.time()
        if behind_seconds:  # also without what reached it and was not read
            new.kill()
            new.start()
        self.takeovers.append(Takeover(died, time.time()))
        new.promote()
        if stale_seconds:
            old.resume()
            time.sleep(stale_seconds)
            old.stop("immediate")
        if frozen_seconds:
            time.sleep(frozen_seconds)
            old.kill()
        self.primary, self.standby = new, old
        old.follow(new)
        old.start()
        self.wait_for_standby()

    def wait_for_standby(self) -> None:
        """Until the standby follows, and commits are acknowledged as they should be."""
        wanted = "sync" if self._synchronous else "async"
        end = time.monotonic() + STREAMING_SECONDS
        while self.primary.execute("SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'") != [
            (wanted,)
        ]:
            if time.monotonic() > end:
                raise RuntimeError(f"the standby does not follow:\n{self.standby.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def close(self) -> None:
        """Stop and delete everything."""
        self._stack.close()
