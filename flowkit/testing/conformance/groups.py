"""The rules of groups, directions and uptime."""

import time
from itertools import pairwise

from flowkit.errors import Fenced
from flowkit.message import new_id
from flowkit.ports import Copy, Fence, Standing, WorkerInfo
from flowkit.testing.conformance.kit import DEADLINE_SECONDS, FLOW, StoreKit, delivery, message, raises, there


class GroupsConformance(StoreKit):
    """The rules of groups, directions and uptime."""

    def test_one_group_is_active_until_it_is_silent_too_long(self) -> None:
        store = self.store
        assert store.groups.standing("kit") is store.groups.stand("kit", "one", 60, ready=False) is None
        first = self._stand("kit", "one", 60, ready=True)
        assert first[:2] == ("one", 1)
        assert 50 < first.seconds <= 60
        assert self._stand("kit", "two", 60, ready=True).group == "one"
        self.fall_silent("one")
        assert self._stand("kit", "two", 60, ready=False)[:2] == ("one", 1)
        assert self._stand("kit", "two", 60, ready=True)[:2] == ("two", 2)
        assert self._stand("kit", "one", 60, ready=True)[:2] == ("two", 2)
        assert self._stand("other", "one", 60, ready=True)[:2] == ("one", 1)

    def test_a_group_that_steps_down_is_replaced_at_once_unless_a_worker_of_it_is_left(self) -> None:
        store, worker = self.store, new_id()
        store.groups.stand("kit", "one", 60, ready=True)
        store.fleet.join(WorkerInfo(worker, "kit", "here", 1, "one"))
        store.groups.step_down("kit", "one", 60)
        assert self._stand("kit", "two", 60, ready=True)[:2] == ("one", 1)
        store.fleet.leave(worker)
        store.groups.step_down("kit", "two", 60)
        assert self._stand("kit", "two", 60, ready=True)[:2] == ("one", 1)
        store.groups.step_down("kit", "one", 60)
        assert self._stand("kit", "two", 60, ready=True)[:2] == ("two", 2)

    def test_no_group_is_active_beside_workers_without_one(self) -> None:
        store, worker = self.store, new_id()
        self.fall_silent("one")
        assert self._stand("kit", "", 0.0, ready=True)[:2] == ("", 2)
        store.fleet.join(WorkerInfo(worker, "kit", "here", 1))
        for group in ("one", "two"):
            assert self._stand("kit", group, 60, ready=True)[:2] == ("", 2), "not even who was active before"
        store.fleet.leave(worker)
        assert self._stand("kit", "one", 60, ready=True)[:2] == ("one", 3)

    def test_a_silent_group_that_nobody_replaced_goes_on(self) -> None:
        self.fall_silent("one")
        assert self._stand("kit", "one", 60, ready=False)[:2] == ("one", 1)

    def test_a_replaced_group_cannot_commit(self) -> None:
        store, known, new = self.store, delivery(message()), delivery(message())
        row = Copy(new_id(), message(), FLOW)
        self.stage(row)
        self.fall_silent("one")
        store.fence = Fence("kit", "one", 1)
        assert self.claim(known) == [known.message.id]
        store.groups.stand("kit", "two", 60, ready=True)
        for fence in (store.fence, Fence("kit", "two", 1), Fence("kit", "one", 2), Fence("other", "two", 2)):
            store.fence = fence
            assert raises(Fenced, lambda: self.claim(new))
            assert raises(Fenced, lambda: self.stage(Copy(new_id(), message(), FLOW)))
            assert raises(Fenced, lambda: store.queue.lease(FLOW, 10, "me", 60))
        store.fence = Fence("kit", "two", 2)
        assert self.claim(new) == [new.message.id]
        assert [one.row for one in store.queue.lease(FLOW, 10, "me", 60)] == [row.row]

    def test_messages_that_a_replaced_group_held_are_free(self) -> None:
        store, old, new = self.store, new_id(), new_id()
        self.stage(Copy(new_id(), message(), FLOW), Copy(new_id(), message(), FLOW))
        self.fall_silent("one")
        store.fleet.join(WorkerInfo(old, "kit", "here", 1, "one"))
        store.fleet.join(WorkerInfo(new, "kit", "here", 1, "two"))
        assert len(store.queue.lease(FLOW, 1, old, 60)) == len(store.queue.lease(FLOW, 1, new, 60)) == 1
        store.groups.stand("kit", "two", 60, ready=True)
        assert len(store.queue.lease(FLOW, 10, new, 60)) == 1
        assert [one.id for one in store.ledger.workers()] == [new]

    def test_the_fleet_is_directed_until_it_is_not(self) -> None:
        self.store.directions.set("paused", ["kit", FLOW], 1)
        self.store.directions.set("workers", ["kit"], 3)
        self.store.directions.set("workers", ["kit"], 4)
        assert self.store.directions.read() == {("paused", "kit"): 1, ("paused", FLOW): 1, ("workers", "kit"): 4}
        self.store.directions.set("paused", ["kit"], None)
        assert self.store.directions.read() == {("paused", FLOW): 1, ("workers", "kit"): 4}

    def test_times_that_an_app_is_up_grow_and_do_not_multiply(self) -> None:
        assert self.store.uptime.read("kit", 60) == []
        for _ in range(3):
            self.store.uptime.note("kit")
        self.store.uptime.note("other")
        ((since, until),) = self.store.uptime.read("kit", 60)
        assert 0 <= until <= since < 60
        for _ in range(2):
            with self.store.unit(FLOW) as unit:
                unit.write("UPDATE flowkit_uptime SET until = until - 9000000, since = since - 9000000", [()])
                unit.commit()
            self.store.uptime.note("kit")
        found = self.store.uptime.read("kit", 60)
        assert [round(since / 9) for since, _ in found] == [2, 1, 0]
        assert all(until - since > 3 for (_, until), (since, _) in pairwise(found))
        assert len(self.store.uptime.read("kit", 4)) == 2, "or an outage that reaches further back would not be seen"

    def _stand(self, app: str, group: str, seconds: float, ready: bool) -> Standing:
        """Stand for a group where one of the app is active. Returns the active one."""
        return there(self.store.groups.stand(app, group, seconds, ready))

    def fall_silent(self, group: str) -> None:
        """Make this group active, and let its lease expire."""
        self.store.groups.stand("kit", group, 0.001, ready=True)
        end = time.monotonic() + DEADLINE_SECONDS
        while there(self.store.groups.standing("kit")).seconds >= 0:
            assert time.monotonic() < end
            time.sleep(0.001)
