"""The rules of message rows: leases, delays and their order."""

from flowkit.message import BATCH_BYTES, new_id
from flowkit.ports import Copy
from flowkit.testing.conformance.kit import FLOW, OTHER, StoreKit, message


class QueueConformance(StoreKit):
    """The rules of message rows: leases, delays and their order."""

    def test_a_staged_copy_is_leased_once_with_all_it_carries(self) -> None:
        sent = message(
            b"\x00\xff raw", type="Order", key="k", time=12.5, correlation="c", causation="d", headers={"h": "ü"}
        )
        self.stage(Copy(new_id(), sent, FLOW, generation=2, attempts=1))
        (got,) = self.store.queue.lease(FLOW, 10, new_id(), 30)
        assert got.message == sent
        assert (got.flow, got.generation, got.attempts, got.deliveries) == (FLOW, 2, 1, 1)
        assert self.store.queue.lease(FLOW, 10, new_id(), 30) == []

    def test_row_5_a_stale_token_changes_nothing(self) -> None:
        self.stage(Copy(new_id(), message(), FLOW))
        (first,) = self.store.queue.lease(FLOW, 1, new_id(), 0)
        (second,) = self.store.queue.lease(FLOW, 1, new_id(), 30)
        assert (second.row, second.deliveries) == (first.row, 2)
        with self.store.unit(FLOW) as unit:
            unit.remove([(first.row or "", first.deliveries)])
            unit.commit()
        assert self.store.ledger.pending([FLOW]).now == 1, "a stale token must not remove the row"
        self.store.queue.release([(first.row or "", first.deliveries)])
        assert self.store.queue.lease(FLOW, 1, new_id(), 30) == [], "a stale release must not free the new lease"
        with self.store.unit(FLOW) as unit:
            unit.remove([(second.row or "", second.deliveries)])
            unit.commit()
        assert self.store.ledger.pending([FLOW]).now == 0

    def test_a_released_row_is_due_at_once_and_a_renewed_one_is_not(self) -> None:
        self.stage(Copy(new_id(), message(), FLOW))
        (first,) = self.store.queue.lease(FLOW, 1, new_id(), 0)
        self.store.queue.renew([(first.row or "", first.deliveries)], 30)
        assert self.store.queue.due([FLOW, OTHER]) == set()
        self.store.queue.release([(first.row or "", first.deliveries)])
        assert self.store.queue.due([FLOW, OTHER]) == {FLOW}

    def test_row_5_a_stale_token_renews_nothing(self) -> None:
        self.stage(Copy(new_id(), message(), FLOW))
        (first,) = self.store.queue.lease(FLOW, 1, new_id(), 0)
        (second,) = self.store.queue.lease(FLOW, 1, new_id(), 0)
        self.store.queue.renew([(first.row or "", first.deliveries)], 30)
        assert self.store.queue.due([FLOW]) == {FLOW}
        self.store.queue.renew([(second.row or "", second.deliveries)], 30)
        assert self.store.queue.due([FLOW]) == set()

    def test_a_delay_is_not_early(self) -> None:
        self.stage(Copy(new_id(), message(), FLOW, delay=60))
        assert self.store.queue.lease(FLOW, 1, new_id(), 30) == []
        assert self.store.ledger.pending([FLOW]) == (0, 1)

    def test_a_parked_row_is_seen_and_due_on_demand(self) -> None:
        self.stage(Copy(new_id(), message(), FLOW))
        (one,) = self.store.queue.lease(FLOW, 1, new_id(), 30)
        self.store.queue.park({(one.row or "", one.deliveries): "no queue"}, 60)
        assert self.store.queue.due([FLOW]) == set()
        self.store.queue.unpark([FLOW])
        assert self.store.queue.due([FLOW]) == {FLOW}

    def test_rows_come_in_the_order_of_their_staging(self) -> None:
        rows = [Copy(new_id(), message(str(number).encode()), FLOW) for number in range(20)]
        self.stage(*rows)
        assert [one.row for one in self.store.queue.lease(FLOW, 20, new_id(), 30)] == [one.row for one in rows]

    def test_a_lease_ends_with_the_row_that_makes_it_large(self) -> None:
        body = b"x" * (BATCH_BYTES // 2 + 1)
        self.stage(*(Copy(new_id(), message(body), FLOW) for _ in range(3)), Copy(new_id(), message(), FLOW))
        assert [len(self.store.queue.lease(FLOW, 10, new_id(), 30)) for _ in range(3)] == [2, 2, 0]
        self.stage(*(Copy(new_id(), message(body), FLOW) for _ in range(2)))
        assert [len(self.store.queue.lease(FLOW, 1, new_id(), 30)) for _ in range(3)] == [1, 1, 0]

    def test_row_36_rows_of_a_slow_transaction_are_not_skipped(self) -> None:
        if self.store.serial:
            return  # one writer at a time: no transaction can commit past another
        slow = Copy(new_id(), message(b"slow"), FLOW)
        with self.store.unit(FLOW) as unit:
            unit.stage([slow])
            for _ in range(50):
                self.stage(Copy(new_id(), message(), FLOW))
            assert len(self.store.queue.lease(FLOW, 100, new_id(), 30)) == 50
            unit.commit()
        assert [one.row for one in self.store.queue.lease(FLOW, 100, new_id(), 30)] == [slow.row]
