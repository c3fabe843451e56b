"""The rules of the fleet and of retention."""

from unittest.mock import patch

from flowkit.errors import StoreConflict
from flowkit.message import new_id
from flowkit.ports import Copy, Reopening, Retention, WorkerInfo
from flowkit.testing.conformance.kit import CHANNEL, FLOW, StoreKit, delivery, message, raises


class FleetConformance(StoreKit):
    """The rules of the fleet and of retention."""

    def test_only_the_elected_cleaner_cleans(self) -> None:
        policy = Retention("kit", [FLOW], [CHANNEL], 0, 3600)
        self.claim(delivery(message()), delivery(message()))
        assert self.store.retention.clean(policy, "one") == 2
        self.claim(delivery(message()))
        assert self.store.retention.clean(policy, "two") == 0
        assert self.store.retention.clean(policy, "one") == 1

    def test_a_cleaner_that_leaves_hands_over(self) -> None:
        policy = Retention("kit", [FLOW], [CHANNEL], 0, 3600)
        worker = WorkerInfo(new_id(), "kit", "host", 1)
        self.store.fleet.join(worker)
        self.claim(delivery(message()))
        assert self.store.retention.clean(policy, worker.id) == 1
        self.claim(delivery(message()))
        assert self.store.retention.clean(policy, "another") == 0
        self.store.fleet.leave(worker.id)
        assert self.store.retention.clean(policy, "another") == 1

    def test_an_accepted_id_is_remembered_twice_as_long_as_what_a_flow_did_with_it(self) -> None:
        one = message()
        self.claim(delivery(one), delivery(one, f"channel:{CHANNEL}"))
        with self.store.unit(FLOW) as unit:
            unit.write("UPDATE flowkit_inbox SET changed = changed - 90000000", [()])
            unit.commit()
        assert self.store.retention.clean(Retention("kit", [FLOW], [CHANNEL], 60, 3600), "me") == 1
        assert self.claim(delivery(one, f"channel:{CHANNEL}")) == []
        assert self.store.retention.clean(Retention("kit", [FLOW], [CHANNEL], 30, 3600), "me") == 1

    def test_rows_that_a_purge_could_not_commit_are_purged_by_the_next_one(self) -> None:
        self.claim(delivery(message()), delivery(message()))
        policy = Retention("kit", [FLOW], [CHANNEL], 0, 3600)
        with patch.object(type(self.store.dialect), "commit", side_effect=StoreConflict("busy")):
            assert raises(StoreConflict, lambda: self.store.retention.clean(policy, "me"))
        assert self.store.retention.clean(policy, "me") == 2

    def test_open_and_dead_inbox_rows_are_never_purged(self) -> None:
        self.bury()
        waits = delivery(message())
        with self.store.unit(FLOW) as unit:
            unit.reopen([Reopening(waits.identity, 1, 1)])
            unit.commit()
        assert self.store.retention.clean(Retention("kit", [FLOW], [CHANNEL], 0, 3600), "me") == 0

    def test_dead_letters_past_their_hold_expire(self) -> None:
        one = self.bury()
        assert self.store.retention.clean(Retention("kit", [FLOW], [CHANNEL], 3600, 0), "me") == 1
        assert self.claim(one) == [], "it stays a duplicate"
        with self.store.unit(FLOW) as unit:
            assert unit.read("SELECT state FROM flowkit_inbox") == [(1,)], "and is purged with the others"
        balance = self.store.ledger.balances()[FLOW]
        assert (balance.dead, balance.expired, balance.balanced) == (0, 1, True)

    def test_a_worker_that_leaves_frees_what_it_held(self) -> None:
        worker = WorkerInfo(new_id(), "kit", "host", 1)
        self.store.fleet.join(worker)
        self.store.fleet.beat(worker.id, "ready")
        self.stage(Copy(new_id(), message(), FLOW))
        assert self.store.queue.lease(FLOW, 1, worker.id, 300)
        assert self.store.queue.due([FLOW]) == set()
        self.store.fleet.leave(worker.id)
        assert self.store.queue.due([FLOW]) == {FLOW}
        assert self.store.ledger.workers() == []

    def test_a_worker_whose_row_others_removed_is_there_again_with_its_next_heartbeat(self) -> None:
        worker = WorkerInfo(new_id(), "kit", "host", 1)
        self.store.fleet.join(worker)
        with self.store.unit(FLOW) as unit:
            unit.write("DELETE FROM flowkit_workers", [()])
            unit.commit()
        self.store.fleet.beat(worker.id, "ready")
        (seen,) = self.store.ledger.workers()
        assert (seen.id, seen.state) == (worker.id, "ready")
        assert self.store.fleet.members() == {worker.id}
