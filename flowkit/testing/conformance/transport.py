"""All that a transport must do with copies that were committed for it."""

import threading
import time
from collections.abc import Sequence

from flowkit.errors import ConfigError, StoreConflict
from flowkit.message import MAX_NAME, new_id
from flowkit.ports import Copy, Delivery
from flowkit.testing.conformance.kit import DEADLINE_SECONDS, FLOW, OTHER, TransportKit, message, raises


class TransportConformance(TransportKit):
    """The rules for the copies that were committed for a transport."""

    def test_a_message_arrives_whole(self) -> None:
        sent = message(b"\x00\xff", type="T", key="k", time=1.5, correlation="c", causation="d", headers={"h": "ü"})
        self.send(sent, generation=3)
        (got,) = self.receive(self.consumer(), 1)
        assert got.message == sent
        assert (got.flow, got.generation, got.deliveries) == (FLOW, 3, 1)
        assert got.staged > 0

    def test_names_as_long_as_they_may_be_arrive_whole(self) -> None:
        long = "ü" * MAX_NAME
        sent = message(id=long, source=long, type=long, key=long, correlation=long, causation=long, headers={"h": long})
        self.send(sent)
        (got,) = self.receive(self.consumer(), 1)
        assert got.message == sent

    def test_receive_takes_what_is_there_up_to_the_limit_and_does_not_wait(self) -> None:
        consumer = self.consumer()
        assert consumer.receive(10) == []
        self.send(*(message() for _ in range(5)))
        first = self.receive(consumer, 1)
        end = time.monotonic() + DEADLINE_SECONDS
        while len(first) < 5 and time.monotonic() < end:
            some = consumer.receive(2)
            assert len(some) <= 2
            first += some
        assert len(first) == 5
        assert consumer.receive(3) == []

    def test_a_settled_message_never_comes_back(self) -> None:
        self.send(message())
        consumer = self.consumer()
        self.settle(consumer, self.receive(consumer, 1))
        self.lose_connection(self.transport)
        self.only(consumer)

    def test_row_59_settling_some_does_not_settle_those_before_them(self) -> None:
        sent = [message() for _ in range(6)]
        self.send(*sent)
        consumer = self.consumer()
        got = self.receive(consumer, 6)
        self.settle(consumer, [got[1], got[3], got[4]])
        self.lose_connection(self.transport)
        again = self.receive(consumer, 3)
        assert {one.message.id for one in again} == {sent[0].id, sent[2].id, sent[5].id}

    def test_a_message_that_one_consumer_holds_does_not_reach_another(self) -> None:
        self.send(message())
        self.receive(self.consumer(), 1)
        assert self.consumer().receive(1) == []

    def test_a_released_message_comes_again_with_a_higher_number_of_deliveries(self) -> None:
        self.send(message())
        consumer = self.consumer()
        first = self.receive(consumer, 1)
        consumer.release(first)
        (again,) = self.receive(consumer, 1)
        assert again.message == first[0].message
        assert again.deliveries == 2

    def test_a_lost_connection_brings_the_unsettled_back(self) -> None:
        self.send(message(), message())
        consumer = self.consumer()
        first = self.receive(consumer, 2)
        self.settle(consumer, first[:1])
        self.lose_connection(self.transport)
        (again,) = self.receive(consumer, 1)
        assert again.message == first[1].message
        assert again.deliveries == 2

    def test_row_16_a_stale_settlement_is_harmless(self) -> None:
        self.send(message())
        consumer = self.consumer()
        stale = self.receive(consumer, 1)
        self.lose_connection(self.transport)
        held = self.receive(consumer, 1)
        assert held[0].message == stale[0].message
        self.settle(consumer, stale)
        consumer.release(stale)
        assert self.consumer().receive(1) == [], "it is still held"
        self.settle(consumer, held)
        self.only(consumer)

    def test_each_flow_gets_its_own_copy(self) -> None:
        one = message()
        self.send(one)
        self.send(one, flow=OTHER)
        assert [len(self.receive(self.consumer(flow), 1)) for flow in (FLOW, OTHER)] == [1, 1]

    def test_messages_come_in_the_order_of_their_sending(self) -> None:
        sent = [message() for _ in range(20)]
        self.send(*sent)
        assert [one.message for one in self.receive(self.consumer(), 20)] == sent

    def test_wait_names_the_flows_with_messages(self) -> None:
        consumer = self.consumer()
        self.send(message())
        end = time.monotonic() + DEADLINE_SECONDS
        while (told := self.transport.wait(0.05, [FLOW, OTHER])) != {FLOW}:
            assert not told
            assert time.monotonic() < end
        self.receive(consumer, 1)
        assert self.transport.wait(0, [FLOW, OTHER]) == set()

    def test_row_14_a_copy_without_a_place_says_so_and_its_neighbours_arrive(self) -> None:
        if self.features.rows:
            return  # there are no places: rows are found by the name of their flow
        copies = [Copy(new_id(), message(), flow) for flow in (FLOW, "kit.nowhere", FLOW)]
        receipts = self.transport.send(copies)
        assert [one.copy for one in receipts] == copies
        assert [one.confirmed for one in receipts] == [True, False, True]
        assert "kit.nowhere" in receipts[1].reason
        assert len(self.receive(self.consumer(), 2)) == 2

    def test_a_worker_that_is_alone_meets_nobody(self) -> None:
        assert dict(self.transport.others(new_id(), lambda: True)) == {}

    def test_a_flow_that_receives_is_not_hindered(self) -> None:
        self.send(message())
        consumer = self.consumer()
        self.settle(consumer, self.receive(consumer, 1))
        assert self.transport.hindered == {}
        consumer.close()

    def test_queued_messages_of_a_flow_can_be_taken_and_the_queue_removed(self) -> None:
        if self.features.rows:
            self.transport.empty(FLOW, lambda _: self.fail("rows are not taken away"))
            return
        sent = [message() for _ in range(3)]
        self.send(*sent, generation=2)

        def refuse(deliveries: Sequence[Delivery]) -> None:
            raise StoreConflict("not now")

        assert raises(StoreConflict, lambda: self.transport.empty(FLOW, refuse))
        kept: list[Delivery] = []
        self.transport.empty(FLOW, kept.extend)
        assert [(one.message, one.flow, one.generation, one.foreign) for one in kept] == [
            (one, FLOW, 2, False) for one in sent
        ]
        assert self.transport.depths([FLOW]) == {FLOW: 0}
        (receipt,) = self.transport.send([Copy(new_id(), message(), FLOW)])
        assert not receipt.confirmed
        self.transport.empty(FLOW, kept.extend)
        assert len(kept) == 3

    def test_messages_are_not_taken_while_a_worker_receives_them(self) -> None:
        if self.features.rows:
            return
        consumer = self.consumer()
        self.send(message())
        (held,) = self.receive(consumer, 1)
        assert raises(ConfigError, lambda: self.transport.empty(FLOW, lambda _: self.fail("it was taken away")))
        self.settle(consumer, [held])

    def test_a_waiter_wakes_when_a_message_comes(self) -> None:
        woken = threading.Event()
        self.consumer()

        def wait() -> None:
            while FLOW not in self.transport.wait(DEADLINE_SECONDS, [FLOW]):
                """Woken for something else."""
            woken.set()

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        self.send(message())
        self.store.notify([FLOW])
        assert woken.wait(DEADLINE_SECONDS)
        waiter.join(DEADLINE_SECONDS)
