"""The rules of subscriptions: flows that are renamed or removed."""

from flowkit.errors import ConfigError
from flowkit.message import Message, new_id
from flowkit.ports import CANDIDATE, Copy, Tally, WorkerInfo
from flowkit.testing.conformance.kit import CHANNEL, FLOW, OTHER, StoreKit, delivery, message, raises, there


class SubscribersConformance(StoreKit):
    """The rules of subscriptions: flows that are renamed or removed."""

    def test_a_gone_flow_keeps_its_subscription(self) -> None:
        self.store.subscribers.add({FLOW: CHANNEL})
        with self.store.unit(FLOW) as unit:
            assert unit.subscribers([CHANNEL, "nobody"]) == {CHANNEL: [FLOW, OTHER]}

    def accept(self, *messages: Message, flow: str = FLOW) -> list[str]:
        """Stage messages for a flow, and count them. Returns their ids."""
        with self.store.unit(flow) as unit:
            unit.stage([Copy(new_id(), one, flow) for one in messages])
            unit.count({flow: Tally(accepted=len(messages))})
            unit.commit()
        return [one.id for one in messages]

    def apply(self, flow: str) -> None:
        """Apply the first message of a flow."""
        leased = self.store.queue.lease(flow, 1, new_id(), 30)
        with self.store.unit(flow) as unit:
            unit.claim(leased)
            unit.remove([(there(one.row), one.deliveries) for one in leased])
            unit.count({flow: Tally(applied=1)})
            unit.commit()

    def balanced(self, flow: str, **counts: int) -> bool:
        """Whether the ledger of a flow is this one."""
        found = self.store.ledger.balances()[flow]
        return found.balanced and {name: getattr(found, name) for name in counts} == counts

    def test_a_flow_is_renamed_with_what_waits_for_it_and_what_it_did(self) -> None:
        dead, applied = self.bury(), delivery(message())
        (held, waiting) = self.accept(message(), message())
        assert self.claim(applied) == [applied.message.id]
        self.store.queue.lease(FLOW, 1, "gone", 3600)
        self.stage(Copy(new_id(), message(id="late"), FLOW + CANDIDATE, delay=3600))
        with self.store.unit(FLOW) as unit:
            unit.count({FLOW: Tally(accepted=2, applied=1)})
            unit.commit()
        assert self.store.subscribers.move(FLOW, "kit.heir")[:2] == (3, 1)
        assert self.store.subscribers.channels() == {"kit.heir": CHANNEL, OTHER: CHANNEL}
        assert self.balanced("kit.heir", accepted=5, applied=1, dead=1, pending=3)
        assert FLOW not in self.store.ledger.balances()
        assert {one.message.id for one in self.store.queue.lease("kit.heir", 10, new_id(), 30)} == {held, waiting}
        with self.store.unit("kit.heir") as unit:
            theirs = [one._replace(flow="kit.heir") for one in (dead, applied)]
            assert unit.claim(theirs) == {}

    def test_a_flow_that_is_renamed_leaves_its_heir_what_it_has_itself(self) -> None:
        both = [message(), message(), message()]
        self.accept(*both)
        self.accept(*both, flow=OTHER)
        self.apply(OTHER)  # the new name has applied one of them, and the old name another
        self.apply(FLOW)
        self.accept(message())
        assert self.store.subscribers.move(FLOW, OTHER) == (1, 0, 2)
        assert self.balanced(OTHER, accepted=7, applied=2, discarded=2, pending=3)
        (first, *others) = self.store.queue.lease(OTHER, 10, new_id(), 30)
        assert self.claim(first, *others) == sorted(one.message.id for one in (first, *others))

    def test_a_removed_flow_discards_what_waits_for_it(self) -> None:
        self.bury()
        self.accept(message(), message())
        self.store.directions.set("paused", [FLOW], 1)
        assert self.store.subscribers.remove(FLOW).discarded == 3
        assert self.store.subscribers.channels() == {OTHER: CHANNEL}
        assert self.store.directions.read() == {}
        assert self.balanced(FLOW, accepted=3, discarded=3, pending=0)

    def test_a_flow_is_not_removed_while_a_worker_has_messages_of_it(self) -> None:
        self.accept(message())
        worker = WorkerInfo(new_id(), "kit", "host", 1)
        self.store.fleet.join(worker)
        self.store.queue.lease(FLOW, 1, worker.id, 3600)
        assert raises(ConfigError, lambda: self.store.subscribers.remove(FLOW))
        assert FLOW in self.store.subscribers.channels()
        self.store.fleet.leave(worker.id)
        assert self.store.subscribers.remove(FLOW).discarded == 1

    def test_deliveries_from_a_broker_are_kept_unless_they_took_effect(self) -> None:
        applied, waiting = delivery(message()), delivery(message(), generation=1, attempts=2)
        self.claim(applied)
        self.store.subscribers.keep(FLOW, [applied, waiting])
        (kept,) = self.store.queue.lease(FLOW, 10, new_id(), 30)
        assert (kept.message, kept.generation, kept.attempts) == (waiting.message, 1, 2)
        assert self.store.subscribers.channels() == {OTHER: CHANNEL}, "no relay sends it to where it came from"

    def test_a_flow_that_the_last_program_of_its_app_lacks_is_an_orphan(self) -> None:
        assert self.store.subscribers.orphans() == []
        with self.store.transaction() as unit:
            unit.write("UPDATE flowkit_subscriptions SET seen = seen - 3600000000 WHERE flow = 'kit.flow'", [()])
        self.store.subscribers.add({"another.flow": CHANNEL})
        assert [one.flow for one in self.store.subscribers.orphans()] == [FLOW]
