"""The conformance kit: what every store and every transport must do. Subclass, say how to open yours, run pytest.

    class TestMyTransport(TransportConformance):
        features = Features(rows=False)

        def open(self) -> tuple[Store, Transport]: ...

Differences are declared in `Features`, never skipped silently.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest.mock import patch

from flowkit.errors import ConfigError, Fenced, StoreConflict
from flowkit.message import BATCH_BYTES, MAX_NAME, Message, new_id
from flowkit.ports import (
    CANDIDATE,
    Asked,
    Claim,
    Consumer,
    Copy,
    Delivery,
    Fence,
    Letter,
    Objects,
    Pending,
    Reopening,
    Retention,
    Store,
    Tally,
    Transport,
    WorkerInfo,
)

FLOW = "kit.flow"
OTHER = "kit.other"
CHANNEL = "kit.channel"
DEADLINE_SECONDS = 20.0


@dataclass(frozen=True)
class Features:
    """In what transports may differ."""

    rows: bool
    """The store's message rows are the queue; else copies hop to it after the commit."""


def message(body: bytes = b"{}", **fields: Any) -> Message:
    """A message of the kit."""
    return Message(**{"id": new_id(), "source": "kit", "channel": CHANNEL, "body": body, **fields})


def delivery(one: Message, flow: str = FLOW, generation: int = 0, attempts: int = 0) -> Delivery:
    """A message as a lane would hold it."""
    return Delivery(one, flow, generation, attempts)


def raises(error: type[Exception], work: Callable[[], object]) -> bool:
    """Whether the store refuses this, by this error."""
    try:
        work()
    except error:
        return True
    return False


class StoreConformance:
    """The rules of the inbox, the rows, the dead letters and the ledger."""

    def open(self) -> Any:
        """A fresh store, with its schema."""
        raise NotImplementedError("say how to open the store")

    def setup_method(self) -> None:
        self.store = self.open()
        self.store.subscribers.add({FLOW: CHANNEL, OTHER: CHANNEL})

    def teardown_method(self) -> None:
        self.store.close()

    def claim(self, *deliveries: Delivery) -> list[str]:
        """The ids that could be claimed, in a transaction of their own."""
        with self.store.unit(FLOW) as unit:
            claims = unit.claim(deliveries)
            unit.commit()
        return sorted(identity[2] for identity in claims)

    def stage(self, *copies: Copy) -> None:
        with self.store.unit(FLOW) as unit:
            unit.stage(copies)
            unit.commit()

    # ------------------------------------------------------------ the inbox

    def test_a_message_is_claimed_once(self) -> None:
        one = delivery(message())
        assert self.claim(one) == [one.message.id]
        assert self.claim(one) == []

    def test_a_claim_that_rolls_back_never_was(self) -> None:
        one = delivery(message())
        with self.store.unit(FLOW) as unit:
            assert unit.claim([one])
        assert self.claim(one) == [one.message.id]

    def test_row_54_the_same_id_twice_in_one_batch_is_claimed_once(self) -> None:
        one = delivery(message())
        assert self.claim(one, one, one) == [one.message.id]

    def test_row_55_two_producers_may_use_the_same_id(self) -> None:
        one = message(id="order-1", source="a")
        assert self.claim(delivery(one), delivery(one._replace(source="b"))) == ["order-1", "order-1"]

    def test_each_flow_claims_its_own_copy(self) -> None:
        one = message()
        assert len(self.claim(delivery(one), delivery(one, OTHER))) == 2

    def test_row_61_a_generation_is_claimed_once_and_older_ones_never_again(self) -> None:
        one = delivery(message())
        self.claim(one)
        with self.store.unit(FLOW) as unit:
            unit.reopen([Reopening(one.identity, 1, 1)])
            unit.commit()
        second = one._replace(generation=1)
        assert self.claim(one) == []
        assert self.claim(second) == [one.message.id]
        assert self.claim(second) == []

    def test_the_inbox_keeps_the_digest_of_what_has_an_id(self) -> None:
        one = delivery(message())._replace(digest="a")
        two = delivery(message())
        self.claim(one, one._replace(digest="b"), two)
        with self.store.unit(FLOW) as unit:
            assert unit.digests([one, two, delivery(message())]) == {one.identity: "a", two.identity: ""}
            unit.reopen([Reopening(one.identity, 1, 1)])
            unit.commit()
        self.claim(one._replace(generation=1, digest=""))
        with self.store.unit(FLOW) as unit:
            assert unit.digests([one]) == {one.identity: "a"}, "an attempt by a row of ours has no digest"

    def test_row_65_a_missing_row_can_be_claimed_whatever_the_generation(self) -> None:
        one = delivery(message(), generation=3, attempts=2)
        with self.store.unit(FLOW) as unit:
            assert unit.claim([one])[one.identity].attempts == 2
            unit.commit()
        assert self.claim(one) == []

    def test_row_65_a_charge_before_the_first_claim_does_not_make_it_a_duplicate(self) -> None:
        one = delivery(message())
        self.store.suspects.charge(one.identity, "gone", late=True)
        with self.store.unit(FLOW) as unit:
            claim = unit.claim([one])[one.identity]
            unit.commit()
        assert claim.attempts == 1
        assert claim.suspect
        assert self.claim(one) == []

    def test_a_charge_after_the_end_changes_nothing(self) -> None:
        one = delivery(message())
        self.claim(one)
        self.store.suspects.charge(one.identity, "gone", late=True)
        assert self.claim(one) == []

    def test_the_venture_of_who_died_is_one_attempt_whoever_tells_of_it(self) -> None:
        one = delivery(message())
        self.store.suspects.begin_solo(one, "gone")
        self.store.suspects.begin_solo(one, "gone")
        assert self.attempts(one) == 0, "it is the same venture"
        self.store.suspects.begin_solo(one, "gone too")
        assert self.attempts(one) == 1
        self.store.suspects.charge(one.identity, "gone", late=True)
        assert self.attempts(one) == 1, "its supervisor is late"
        self.store.suspects.charge(one.identity, "gone too", late=False)
        self.store.suspects.charge(one.identity, "gone too", late=False)
        self.store.suspects.begin_solo(one, "next")
        assert self.attempts(one) == 2, "its supervisor was first"
        self.store.suspects.end_solo(one.identity, "next")
        self.store.suspects.begin_solo(one, "last")
        assert self.attempts(one) == 2, "it was given back"
        assert self.claim(one) == [one.message.id]
        self.store.suspects.begin_solo(one, "another")
        assert self.claim(one) == [], "it is at its end"

    def test_the_venture_of_who_lives_is_no_attempt(self) -> None:
        one, worker = delivery(message()), WorkerInfo(new_id(), "kit", "host", 1)
        self.store.fleet.join(worker)
        self.store.suspects.begin_solo(one, worker.id)
        self.store.suspects.begin_solo(one, "another")
        assert self.attempts(one) == 0
        self.store.fleet.leave(worker.id)

    def test_a_stale_copy_ventures_nothing(self) -> None:
        one = delivery(message())
        self.claim(one)
        with self.store.unit(FLOW) as unit:
            unit.reopen([Reopening(one.identity, 1, 1)])
            unit.commit()
        self.store.suspects.begin_solo(one, "gone")
        self.store.suspects.begin_solo(one._replace(generation=1), "next")
        assert self.attempts(one._replace(generation=1)) == 1

    def attempts(self, one: Delivery) -> int:
        """How many a message has that may run."""
        with self.store.unit(FLOW) as unit:
            claims: dict[Any, Claim] = unit.look([one])
        return claims[one.identity].attempts

    def test_a_look_tells_what_a_claim_would(self) -> None:
        done, fresh, again = delivery(message()), delivery(message()), delivery(message(), generation=1)
        self.claim(done)
        with self.store.unit(FLOW) as unit:
            unit.reopen([Reopening(again.identity, 1, 5)])
            unit.commit()
        with self.store.unit(FLOW) as unit:
            seen = unit.look([done, fresh, again, again._replace(generation=0)])
        assert set(seen) == {fresh.identity, again.identity}
        assert seen[again.identity].attempts == 5

    def test_a_claim_is_told_from_that_of_another_worker(self) -> None:
        """After a connection was lost amid a transaction: another may have claimed the message meanwhile."""
        one, claims = delivery(message()), list[Any]()
        for committed in (False, True):
            with self.store.unit(FLOW) as unit:
                claims.append(unit.claim([one]))
                if committed:
                    unit.commit()
        with self.store.unit(FLOW) as unit:
            assert [unit.holds(each) for each in claims] == [False, True]

    def test_row_34_two_transactions_cannot_both_claim(self) -> None:
        one = delivery(message())
        won: list[list[str]] = []
        with self.store.unit(FLOW) as unit:
            assert unit.claim([one])
            other = threading.Thread(target=lambda: won.append(self.claim(one)))
            other.start()
            other.join(0.2)
            assert other.is_alive(), "the second claim must wait for the first transaction"
            unit.commit()
        other.join(DEADLINE_SECONDS)
        assert won == [[]]

    # ------------------------------------------------------------ objects

    def count_up(self, times: int) -> None:
        """Add one to an object so many times, each again where it collides with others."""
        while times:
            with suppress(StoreConflict), self.store.unit(FLOW) as unit:
                objects = unit.access().give(Objects)
                objects.put("count", (objects.get("count") or 0) + 1)
                unit.commit()
                times -= 1

    def test_row_b2_no_update_of_an_object_is_lost(self) -> None:
        counters = [threading.Thread(target=self.count_up, args=(25,)) for _ in range(4)]
        for one in counters:
            one.start()
        for one in counters:
            one.join(DEADLINE_SECONDS)
        with self.store.unit(FLOW) as unit:
            assert unit.access().give(Objects).get("count") == 100

    def conflicts(self, before: object, after: object, change: Callable[[Any], object]) -> bool:
        """Whether the store refuses a change of an object that another one has changed since it was read."""
        self.write("object", before)
        with self.store.unit(FLOW) as unit:
            objects = unit.access().give(Objects)
            assert objects.get("object") == before
            self.write("object", after)
            refused = raises(StoreConflict, lambda: change(objects))
            assert not refused or raises(StoreConflict, unit.commit), "the handler may have caught it"
        return refused

    def test_row_b2_what_changed_since_it_was_read_is_not_written(self) -> None:
        if self.store.serial:
            return  # one writer at a time: nothing changes once an object is read
        for before, after in ((1, 2), (1, None), (None, 2)):
            assert self.conflicts(before, after, lambda objects: objects.put("object", 3))
        for after in (2, None):
            assert self.conflicts(1, after, lambda objects: objects.delete("object"))
        assert not self.conflicts(None, 2, lambda objects: objects.delete("object")), "there was nothing to delete"

    def write(self, key: str, value: object) -> None:
        """Put an object, or delete it, without a look."""
        with self.store.unit(FLOW) as unit:
            objects = unit.access().give(Objects)
            objects.delete(key) if value is None else objects.put(key, value)
            unit.commit()

    # ------------------------------------------------------------ replies

    def reply(self, flow: str, asked: Asked, text: bytes, seconds: float = 60) -> None:
        with self.store.unit(flow) as unit:
            unit.access().reply(asked, text, seconds)
            unit.commit()

    def test_a_reply_is_found_for_its_own_request_only(self) -> None:
        mine = Asked("POST /a", "", "b1")
        others = [Asked("POST /ab", "", "1"), Asked("POST /a", "", "b"), Asked("POST /a", "one", "b1")]
        self.reply(FLOW, mine, b"1")
        assert self.store.answers.replies("kit", [mine, *others]) == {mine: b"1"}
        assert self.store.answers.replies("other", [mine]) == {}, "it is another app's"
        assert self.store.answers.replies("kit", []) == {}
        self.reply(FLOW, others[2], b"2")
        self.reply("other.flow", mine, b"3")
        self.reply(FLOW, mine, b"4")
        assert self.store.answers.replies("kit", [mine, *others]) == {mine: b"4", others[2]: b"2"}

    def test_a_reply_is_committed_with_its_message_or_never_was(self) -> None:
        asked = Asked("POST /a", "", "1")
        with self.store.unit(FLOW) as unit:
            unit.access().reply(asked, b"1", 60)
        assert self.store.answers.replies("kit", [asked]) == {}

    def test_replies_whose_time_is_over_are_purged(self) -> None:
        over, still = Asked("POST /a", "", "1"), Asked("POST /a", "", "2")
        self.reply(FLOW, over, b"1", 0)
        self.reply(FLOW, still, b"2")
        assert self.store.answers.replies("kit", [over, still]) == {still: b"2"}
        assert self.store.retention.clean(Retention("kit", [FLOW], [CHANNEL], 3600, 3600), "me") == 1
        assert self.store.answers.replies("kit", [over, still]) == {still: b"2"}

    # ------------------------------------------------------------ message rows

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

    # ------------------------------------------------------------ dead letters and the ledger

    def bury(self) -> Delivery:
        one = delivery(message(b'{"a": 1}'))
        with self.store.unit(FLOW) as unit:
            unit.claim([one])
            unit.bury([Letter(one, "failed", "ValueError: no", "stack", 3)])
            unit.count({FLOW: Tally(accepted=1, dead=1)})
            unit.commit()
        return one

    def test_a_dead_letter_keeps_the_message_and_is_a_duplicate_from_then_on(self) -> None:
        one = self.bury()
        (letter,) = self.store.dead_letters.read(self.store.dead_letters.select(FLOW, "no"))
        assert (letter.message, letter.attempts, letter.error) == (one.message, 3, "ValueError: no")
        assert self.claim(one) == []
        assert self.store.ledger.balances()[FLOW].balanced

    def test_a_retried_letter_runs_once_however_often_it_is_retried(self) -> None:
        one = self.bury()
        letters = self.store.dead_letters.select()
        assert self.store.dead_letters.retry(letters) == 1
        assert self.store.dead_letters.retry(letters) == 0
        (again,) = self.store.queue.lease(FLOW, 10, new_id(), 30)
        assert (again.generation, again.attempts) == (1, 0)
        assert self.claim(again, again) == [one.message.id]
        balance = self.store.ledger.balances()[FLOW]
        assert (balance.accepted, balance.dead, balance.pending) == (1, 0, 1)
        assert balance.balanced

    def test_a_discarded_letter_is_counted_and_stays_a_duplicate(self) -> None:
        one = self.bury()
        assert self.store.dead_letters.discard(self.store.dead_letters.select()) == 1
        assert self.claim(one) == []
        balance = self.store.ledger.balances()[FLOW]
        assert (balance.dead, balance.discarded, balance.balanced) == (0, 1, True)

    def test_the_ledger_can_fail_to_balance(self) -> None:
        self.stage(Copy(new_id(), message(), FLOW))
        assert not self.store.ledger.balances()[FLOW].balanced, "a row that was never counted must show"

    def test_counters_of_gone_lanes_are_folded_and_keep_their_sum(self) -> None:
        for lane in ("a", "b", "c"):
            with self.store.unit(FLOW, lane=f"{new_id()}-{lane}") as unit:
                unit.count({FLOW: Tally(accepted=2, applied=2)})
                unit.commit()
        self.store.retention.clean(Retention("kit", [FLOW], [CHANNEL], 3600, 3600), "me")
        assert self.store.ledger.balances()[FLOW].applied == 6
        with self.store.unit(FLOW) as unit:
            assert unit.read("SELECT lane, applied FROM flowkit_counters") == [("", 6)]

    # ------------------------------------------------------------ groups of instances

    def test_one_group_is_active_until_it_is_silent_too_long(self) -> None:
        store = self.store
        assert store.groups.standing("kit") is store.groups.stand("kit", "one", 60, ready=False) is None
        first = store.groups.stand("kit", "one", 60, ready=True)
        assert first[:2] == ("one", 1)
        assert 50 < first.seconds <= 60
        assert store.groups.stand("kit", "two", 60, ready=True).group == "one"
        self.fall_silent("one")
        assert store.groups.stand("kit", "two", 60, ready=False)[:2] == ("one", 1)
        assert store.groups.stand("kit", "two", 60, ready=True)[:2] == ("two", 2)
        assert store.groups.stand("kit", "one", 60, ready=True)[:2] == ("two", 2)
        assert store.groups.stand("other", "one", 60, ready=True)[:2] == ("one", 1)

    def test_a_group_that_steps_down_is_replaced_at_once_unless_a_worker_of_it_is_left(self) -> None:
        store, worker = self.store, new_id()
        store.groups.stand("kit", "one", 60, ready=True)
        store.fleet.join(WorkerInfo(worker, "kit", "here", 1, "one"))
        store.groups.step_down("kit", "one", 60)
        assert store.groups.stand("kit", "two", 60, ready=True)[:2] == ("one", 1)
        store.fleet.leave(worker)
        store.groups.step_down("kit", "two", 60)
        assert store.groups.stand("kit", "two", 60, ready=True)[:2] == ("one", 1)
        store.groups.step_down("kit", "one", 60)
        assert store.groups.stand("kit", "two", 60, ready=True)[:2] == ("two", 2)

    def test_no_group_is_active_beside_workers_without_one(self) -> None:
        store, worker = self.store, new_id()
        self.fall_silent("one")
        assert store.groups.stand("kit", "", 0.0, ready=True)[:2] == ("", 2)
        store.fleet.join(WorkerInfo(worker, "kit", "here", 1))
        for group in ("one", "two"):
            assert store.groups.stand("kit", group, 60, ready=True)[:2] == ("", 2), "not even who was active before"
        store.fleet.leave(worker)
        assert store.groups.stand("kit", "one", 60, ready=True)[:2] == ("one", 3)

    def test_a_silent_group_that_nobody_replaced_goes_on(self) -> None:
        self.fall_silent("one")
        assert self.store.groups.stand("kit", "one", 60, ready=False)[:2] == ("one", 1)

    def test_what_a_replaced_group_does_is_not_committed(self) -> None:
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

    def test_what_a_replaced_group_held_is_free(self) -> None:
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

    def fall_silent(self, group: str) -> None:
        """Let this group be active, and its time be over."""
        self.store.groups.stand("kit", group, 0.001, ready=True)
        end = time.monotonic() + DEADLINE_SECONDS
        while self.store.groups.standing("kit").seconds >= 0:
            assert time.monotonic() < end
            time.sleep(0.001)

    # ------------------------------------------------------------ versions

    def test_an_app_without_versions_has_no_rollout(self) -> None:
        assert self.store.rollouts.enter("kit", "", 60) is self.store.rollouts.read("kit", 60) is None

    def test_the_first_version_is_the_baseline_unless_workers_without_one_are_there(self) -> None:
        store = self.store
        assert (
            store.rollouts.enter("kit", "one", 60).baseline == store.rollouts.enter("kit", "two", 60).baseline == "one"
        )
        store.fleet.join(WorkerInfo(new_id(), "other", "host", 1))
        assert store.rollouts.enter("other", "one", 60).baseline == ""
        assert store.rollouts.enter("third", "one", 60).baseline == "one", "those are of another app"

    def test_a_rollout_is_settled_when_all_workers_go_by_it_or_were_silent_too_long(self) -> None:
        store, worker = self.store, new_id()
        before = store.rollouts.enter("kit", "one", 60)
        store.fleet.join(WorkerInfo(worker, "kit", "host", 1, version="one"), before.epoch)
        assert store.rollouts.read("kit", 60).settled
        store.rollouts.change("kit", [FLOW], before._replace(candidate="two", weight=5))
        now = store.rollouts.read("kit", 60)
        assert (now.candidate, now.weight, now.epoch, now.settled) == ("two", 5, before.epoch + 1, False)
        assert store.rollouts.read("kit", 0).settled, "nobody is waited for so short"
        store.fleet.beat(worker, "ready", now.epoch)
        assert store.rollouts.read("kit", 60).settled

    def test_of_two_changes_of_a_rollout_the_second_is_refused(self) -> None:
        store = self.store
        seen = store.rollouts.enter("kit", "one", 60)
        store.rollouts.change("kit", [FLOW], seen._replace(candidate="two", weight=5))
        assert raises(
            StoreConflict, lambda: store.rollouts.change("kit", [FLOW], seen._replace(candidate="three", weight=5))
        )
        assert store.rollouts.read("kit", 60).candidate == "two"

    def test_what_waits_for_a_candidate_is_its_flows(self) -> None:
        store = self.store
        store.rollouts.change("kit", [FLOW], store.rollouts.enter("kit", "one", 60)._replace(candidate="two", weight=5))
        self.stage(Copy(new_id(), message(), FLOW + CANDIDATE))
        assert FLOW + CANDIDATE not in store.subscribers.channels()
        assert store.queue.due() == store.queue.due([FLOW + CANDIDATE]) == {FLOW + CANDIDATE}
        assert store.ledger.pending([FLOW]) == Pending(1, 0)
        assert store.ledger.balances()[FLOW].pending == 1

    # ------------------------------------------------------------ the fleet

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

    def test_what_a_purge_could_not_commit_is_purged_by_the_next_one(self) -> None:
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
            unit.remove([(one.row, one.deliveries) for one in leased])
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
        self.apply(OTHER)  # the heir has applied one of them, and the flow that goes another
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

    def test_what_waited_elsewhere_is_kept_unless_it_took_effect(self) -> None:
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


class TransportConformance:
    """What a transport does with copies that were committed for it."""

    features: Features

    def open(self) -> tuple[Store, Transport]:
        """A fresh store and the transport to test."""
        raise NotImplementedError("say how to open the transport")

    def lose_connection(self, transport: Transport) -> None:
        """Make the transport forget who holds its unsettled messages, as a broken connection does."""
        raise NotImplementedError("say how a connection is lost")

    def setup_method(self) -> None:
        self.store, self.transport = self.open()
        self.store.subscribers.add({FLOW: CHANNEL, OTHER: CHANNEL})
        self.transport.declare([FLOW, OTHER])

    def teardown_method(self) -> None:
        self.transport.close()
        self.store.close()

    def send(self, *messages: Message, flow: str = FLOW, generation: int = 0) -> None:
        """Stage, commit and publish, as a pipeline does."""
        copies = [Copy(new_id(), one, flow, generation) for one in messages]
        with self.store.unit(flow) as unit:
            unit.stage(copies, self.transport.lease)
            unit.commit()
        confirmed = [(one.copy.row, 1) for one in self.transport.send(copies) if one.confirmed]
        assert len(confirmed) == (0 if self.features.rows else len(copies))
        with self.store.unit(flow) as unit:
            unit.remove(confirmed)
            unit.commit()

    def settle(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
        """Commit and settle, as a pipeline does."""
        with self.store.unit(FLOW) as unit:
            unit.remove([(one.row, one.deliveries) for one in deliveries if one.row])
            unit.commit()
        consumer.settle(deliveries)

    def consumer(self, flow: str = FLOW) -> Consumer:
        """A consumer of its own, as of another lane."""
        return self.transport.consumer(flow, new_id(), 100)

    def receive(self, consumer: Consumer, count: int) -> list[Delivery]:
        """So many deliveries, with a deadline: a broker needs a moment to bring them."""
        got: list[Delivery] = []
        end = time.monotonic() + DEADLINE_SECONDS
        while len(got) < count:
            assert time.monotonic() < end, f"{len(got)} of {count} messages came"
            got += consumer.receive(count - len(got)) or self.pause()
        return got

    def pause(self) -> list[Delivery]:
        """Let a moment pass."""
        time.sleep(0.005)
        return []

    def only(self, consumer: Consumer, flow: str = FLOW) -> None:
        """Nothing is there for this consumer: of a message sent now and what was there, it gets that message only."""
        marker = message(b"marker")
        self.send(marker, flow=flow)
        (got,) = self.receive(consumer, 1)
        assert got.message == marker
        assert consumer.receive(10) == []
        self.settle(consumer, [got])

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

    def test_what_one_source_holds_another_does_not_get(self) -> None:
        self.send(message())
        self.receive(self.consumer(), 1)
        assert self.consumer().receive(1) == []

    def test_what_is_given_back_comes_again_and_says_so(self) -> None:
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

    def test_what_waits_for_a_flow_can_be_had_and_its_place_removed(self) -> None:
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

    def test_what_somebody_receives_is_not_taken_away(self) -> None:
        if self.features.rows:
            return
        consumer = self.consumer()
        self.send(message())
        (held,) = self.receive(consumer, 1)
        assert raises(ConfigError, lambda: self.transport.empty(FLOW, lambda _: self.fail("it was taken away")))
        self.settle(consumer, [held])

    def fail(self, why: str) -> None:
        raise AssertionError(why)

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
