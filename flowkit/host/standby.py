"""Standby: instances of an app in groups. One group is active; the others are on standby.

The active group has a lease in the store, by the database's clock, and each of its supervisors renews it. When the
lease has expired, a standby group takes it under the next token. A frozen process of the old group may wake up later:
it commits under the old token, and the store refuses that (ports.Fence).
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
"""Longest time in seconds until a group on standby notices that a lease has expired."""
RENEWALS = 3
"""Renewals per lease."""
BEAT_SECONDS = 1.0
_log = logging.getLogger("flowkit.standby")


def stand_alone(store: Store, app: str, seconds: float) -> None:
    """Keep every group from becoming active for `seconds`, for a process without a group, which is not fenced. Blocks.
    Raises ConfigError if a group is active."""
    standing = store.groups.stand(app, "", seconds, ready=True)
    if standing is not None and standing.group:
        raise ConfigError(
            f"group {standing.group} of app {app} is active; start this instance with --group {standing.group}, to "
            "work beside it, or with --standby hot, to take over from it"
        )


def spare_worker(id: str, app: str, settings: Settings) -> WorkerInfo:
    """This process as a member of the fleet while its instance is on standby."""
    return WorkerInfo(id, app, socket.gethostname(), os.getpid(), settings.group, settings.site, settings.version)


def join_group(app: str, services: Services, spare: bool) -> "Standby | None":
    """Join the group of the settings; return None if they name no group. Blocks. Raises ConfigError if a group and
    instances without a group would work beside each other: the latter are not fenced."""
    settings = services.settings
    if not settings.group:
        stand_alone(services.store, app, settings.group_lease)
        return None
    loose = [one for one in operated(services.store).ledger.workers() if one.app == app and not one.group]
    if loose and any(one.silent < settings.group_lease for one in loose):
        raise ConfigError(
            f"{len(loose)} worker(s) of app {app} run without a group, and would not be fenced off once a group "
            "is active; start them with --group"
        )
    info = spare_worker(services.ids(), app, settings)
    return Standby(services.store, services.clock, info, settings.group_lease, spare)


class Standby:
    """Knows whether the group of this instance is active or on standby. Its own thread asks the store."""

    def __init__(
        self, store: Store, clock: Clock, info: WorkerInfo, seconds: float, spare: bool, takes: bool = True
    ) -> None:
        """Start the thread. `info`: this instance as a member of the fleet while it is on standby. `seconds`: duration
        of the lease. `spare`: let other groups take the first lease. `takes`: if False, never take the lease, and only
        report that it is `over`."""
        self._store = store
        self._clock = clock
        self._info = info
        self._seconds = seconds
        self._takes = takes
        self._patient = clock.monotonic() + (seconds if spare else 0.0)
        """Monotonic time until which an expired lease is left to its holders: they may have been unable to renew it."""
        self._beaten = float("-inf")
        self._closing = threading.Event()
        self._away = ""
        self.standing: Standing | None = None
        """The active group, as last read."""
        self.over = False
        """Whether no group is active, although the holders had time to renew the lease."""
        self._thread = threading.Thread(target=self._watch, name="flowkit-standby", daemon=True)
        self._thread.start()

    @property
    def token(self) -> int:
        """The token under which this group is active; 0 on standby."""
        standing = self.standing
        return standing.token if standing is not None and standing.group == self._info.group else 0

    def close(self) -> None:
        """Stop the thread. If this is the group's last instance, give up the lease, so that no other group waits for it
        to expire. Blocks until the store's last answer."""
        self._closing.set()
        self._thread.join()
        if self.token and self._takes:
            try:
                self._store.groups.step_down(self._info.app, self._info.group, self._seconds)
            except FlowKitError as error:
                _log.warning("group %s: cannot give up its lease, so others wait: %s", self._info.group, error)

    def _watch(self) -> None:
        while not self._closing.is_set():
            try:
                self._look()
            except Exception as error:
                # Any error: without this thread the instance would never take over.
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
        """Leave the fleet: from now on the workers report this instance, or it ends."""
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
            _log.error("app %s: %s is active now; group %s lost its lease, and is spare", info.app, other, info.group)
        elif before is None or before.group in ("", info.group):
            _log.info("app %s: group %s is active", info.app, info.group)
        else:
            _log.warning(
                "app %s: group %s is no longer active; group %s is active now", info.app, before.group, info.group
            )
