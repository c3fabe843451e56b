"""The rules of rollouts."""

from flowkit.errors import StoreConflict
from flowkit.message import new_id
from flowkit.ports import CANDIDATE, Copy, Pending, Rollout, WorkerInfo
from flowkit.testing.conformance.kit import FLOW, StoreKit, message, raises, there


class RolloutsConformance(StoreKit):
    """The rules of rollouts."""

    def test_an_app_without_versions_has_no_rollout(self) -> None:
        assert self.store.rollouts.enter("kit", "", 60) is self.store.rollouts.read("kit", 60) is None

    def _enter(self, app: str, version: str, silent: float) -> Rollout:
        """Enter an app as a worker of this version does."""
        return there(self.store.rollouts.enter(app, version, silent))

    def _read(self, app: str, silent: float) -> Rollout:
        """The rollout of an app that has one."""
        return there(self.store.rollouts.read(app, silent))

    def test_the_first_version_is_the_baseline_unless_workers_without_one_are_there(self) -> None:
        store = self.store
        assert self._enter("kit", "one", 60).baseline == self._enter("kit", "two", 60).baseline == "one"
        store.fleet.join(WorkerInfo(new_id(), "other", "host", 1))
        assert self._enter("other", "one", 60).baseline == ""
        assert self._enter("third", "one", 60).baseline == "one", "those are of another app"

    def test_a_rollout_is_settled_when_all_workers_go_by_it_or_were_silent_too_long(self) -> None:
        store, worker = self.store, new_id()
        before = self._enter("kit", "one", 60)
        store.fleet.join(WorkerInfo(worker, "kit", "host", 1, version="one"), before.epoch)
        assert self._read("kit", 60).settled
        store.rollouts.change("kit", [FLOW], before._replace(candidate="two", weight=5))
        now = self._read("kit", 60)
        assert (now.candidate, now.weight, now.epoch, now.settled) == ("two", 5, before.epoch + 1, False)
        assert self._read("kit", 0).settled, "nobody is waited for so short"
        store.fleet.beat(worker, "ready", now.epoch)
        assert self._read("kit", 60).settled

    def test_of_two_changes_of_a_rollout_the_second_is_refused(self) -> None:
        store = self.store
        seen = self._enter("kit", "one", 60)
        store.rollouts.change("kit", [FLOW], seen._replace(candidate="two", weight=5))
        assert raises(
            StoreConflict, lambda: store.rollouts.change("kit", [FLOW], seen._replace(candidate="three", weight=5))
        )
        assert self._read("kit", 60).candidate == "two"

    def test_messages_that_wait_for_a_candidate_count_for_its_flow(self) -> None:
        store = self.store
        store.rollouts.change("kit", [FLOW], self._enter("kit", "one", 60)._replace(candidate="two", weight=5))
        self.stage(Copy(new_id(), message(), FLOW + CANDIDATE))
        assert FLOW + CANDIDATE not in store.subscribers.channels()
        assert store.queue.due() == store.queue.due([FLOW + CANDIDATE]) == {FLOW + CANDIDATE}
        assert store.ledger.pending([FLOW]) == Pending(1, 0)
        assert store.ledger.balances()[FLOW].pending == 1
