"""The rules of the inbox: what is claimed once."""

import threading
from typing import Any

from flowkit.message import new_id
from flowkit.ports import (
    Claim,
    Delivery,
    Reopening,
    WorkerInfo,
)
from flowkit.testing.conformance.kit import (
    DEADLINE_SECONDS,
    FLOW,
    OTHER,
    StoreKit,
    delivery,
    message,
)


class InboxConformance(StoreKit):
    """The rules of the inbox: what is claimed once."""

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

    def test_a_run_alone_of_a_dead_worker_is_one_attempt_whoever_reports_it(self) -> None:
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
        assert self.claim(one) == [], "it has its outcome"

    def test_a_run_alone_of_a_live_worker_is_no_attempt(self) -> None:
        one, worker = delivery(message()), WorkerInfo(new_id(), "kit", "host", 1)
        self.store.fleet.join(worker)
        self.store.suspects.begin_solo(one, worker.id)
        self.store.suspects.begin_solo(one, "another")
        assert self.attempts(one) == 0
        self.store.fleet.leave(worker.id)

    def test_a_stale_copy_records_no_run_alone(self) -> None:
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

    def test_a_look_returns_the_claims_that_could_be_made(self) -> None:
        done, fresh, again = delivery(message()), delivery(message()), delivery(message(), generation=1)
        self.claim(done)
        with self.store.unit(FLOW) as unit:
            unit.reopen([Reopening(again.identity, 1, 5)])
            unit.commit()
        with self.store.unit(FLOW) as unit:
            seen = unit.look([done, fresh, again, again._replace(generation=0)])
        assert set(seen) == {fresh.identity, again.identity}
        assert seen[again.identity].attempts == 5

    def test_a_claim_differs_from_that_of_another_worker(self) -> None:
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
