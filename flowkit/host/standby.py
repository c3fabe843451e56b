"""Standby: instances of an app in groups, one of which is active and has the others as spares.

The active group has a lease in the store, by the database's clock, which each of its supervisors renews. When it has
ended a spare takes it, under the next token. A process of the old one may be frozen meanwhile and wake up: it commits
under its own token, which the store refuses then (ports.Fence).
"""

import logging
import os
import socket
import threading

from flowkit.disclosure import told
from flowkit.errors import ConfigError, FlowKitError
from flowkit.operations.store import operated
from flowkit.ports import Clock, Standing, Store, WorkerInfo
from flowkit.services import Services
from flowkit.settings import Settings

LOOK_SECONDS = 0.25
"""Longest time in seconds until a spare notices that a lease has ended."""
RENEWALS = 3
"""Renewals per lease."""
BEAT_SECONDS = 1.0
_log = logging.getLogger("flowkit.standby")


def stand_alone(store: Store, app: str, seconds: float) -> None:
    """Keep every group from becoming active for `seconds`, for a process without a group, which is not fenced. Raises
    ConfigError where a group is active."""
    standing = store.groups.stand(app, "", seconds, ready=True)
    if standing is not None and standing.group:
        raise ConfigError(
            f"group {standing.group} of app {app} is active; start this instance with --group {standing.group}, to "
            "work beside it, or with --standby hot, to take over from it"
        )


def spare_worker(id: str, app: str, settings: Settings) -> WorkerInfo:
    """This process as the fleet sees it while its instance is spare."""
    return WorkerInfo(id, app, socket.gethostname(), os.getpid(), settings.group, settings.site, settings.version)


def join_group(app: str, services: Services, spare: bool) -> "Standby | None":
    """Join the group of the settings; None where they name no group. Raises ConfigError where groups and instances
    without a group would work beside each other: the latter are not fenced."""
    settings = services.settings
    if not settings.group:
        stand_alone(services.store, app, settings.group_lease)
        return None
    loose = [one for one in operated(services.store).ledger.workers() if one.app == app and not one.group]
    if loose and any(one.silent < settings.group_lease for one in loose):
        raise ConfigError(
            f"{len(loose)} worker(s) of app {app} run without a group, and would not be kept from writing once "
            "another one is active; start them with --group"
        )
    info = spare_worker(services.ids(), app, settings)
    return Standby(services.store, services.clock, info, settings.group_lease, spare)


class Standby:
    """Knows whether the group of this instance is active or spare. A thread of its own asks the store."""

    def __init__(
        self, store: Store, clock: Clock, info: WorkerInfo, seconds: float, spare: bool, takes: bool = True
    ) -> None:
        """`info`: this instance as the fleet sees it while it is spare. `seconds`: the time of the lease. One that is
        meant as a `spare` lets others be the first; one that never `takes` the lease only sees that it is `over`."""
        self._store = store
        self._clock = clock
        self._info = info
        self._seconds = seconds
        self._takes = takes
        self._patient = clock.monotonic() + (seconds if spare else 0.0)
        """Until then a lease that is over may be renewed: its holders may not have been able to."""
        self._beaten = float("-inf")
        self._closing = threading.Event()
        self._away = ""
        self.standing: Standing | None = None
        """Which group is active, as far as is known."""
        self.over = False
        """Whether no group is active, although there was time to renew the lease."""
        self._thread = threading.Thread(target=self._watch, name="flowkit-standby", daemon=True)
        self._thread.start()

    @property
    def token(self) -> int:
        """The token under which this group is active; 0: it is not."""
        standing = self.standing
        return standing.token if standing is not None and standing.group == self._info.group else 0

    def close(self) -> None:
        """Ask no more, and let no other group wait if nobody of this one is left. Blocks until the last answer is
        there."""
        self._closing.set()
        self._thread.join()
        if self.token and self._takes:
            try:
                self._store.groups.step_down(self._info.app, self._info.group, self._seconds)
            except FlowKitError as error:
                _log.warning("group %s: cannot step down, so others wait for its time: %s", self._info.group, error)

    def _watch(self) -> None:
        while not self._closing.is_set():
            try:
                self._look()
            except Exception as error:
                # Whatever it was: without this thread the instance would never take over.
                self._patient = self._clock.monotonic() + self._seconds
                if str(error) != self._away:
                    _log.warning("group %s: cannot see which group is active: %s", self._info.group, told(error))
                self._away = str(error)
            self._closing.wait(self._seconds / RENEWALS if self.token else min(LOOK_SECONDS, self._seconds / RENEWALS))
        self._leave()

    def _look(self) -> None:
        info, before, now = self._info, self.standing, self._clock.monotonic()
        ready = now >= self._patient
        if self._takes:
            standing = self._store.groups.stand(info.app, info.group, self._seconds, ready)
        else:
            standing = self._store.groups.standing(info.app)
        was, self.standing, self._away = self.token, standing, ""
        self.over = ready and (standing is None or standing.seconds < 0)
        if before is None and standing is not None and standing.group and not self.token:
            _log.info("app %s: group %s is active; group %s is spare", info.app, standing.group, info.group)
        if self.token != was:
            self._tell(before)
        if self.token and not was:
            self._leave()
        elif not self.token and now - self._beaten >= BEAT_SECONDS:
            if self._beaten == float("-inf"):
                self._store.fleet.join(info)
            self._store.fleet.beat(info.id, "spare")
            self._beaten = now

    def _leave(self) -> None:
        """Leave the fleet: the workers speak for this instance now, or nobody does any more."""
        if self._beaten != float("-inf"):
            self._beaten = float("-inf")
            try:
                self._store.fleet.leave(self._info.id)
            except FlowKitError as error:
                _log.warning("group %s: cannot leave the fleet: %s", self._info.group, error)

    def _tell(self, before: Standing | None) -> None:
        info = self._info
        if not self.token:
            other = self.standing.group if self.standing is not None else "no group"
            _log.error(
                "app %s: %s is active now; group %s was silent too long, and is spare", info.app, other, info.group
            )
        elif before is None or before.group in ("", info.group):
            _log.info("app %s: group %s is active", info.app, info.group)
        else:
            _log.warning(
                "app %s: group %s is active no more; group %s is active now", info.app, before.group, info.group
            )
