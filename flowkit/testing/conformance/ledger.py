"""The rules of the dead letters and the ledger."""

from flowkit.message import new_id
from flowkit.ports import Copy, Retention, Tally
from flowkit.testing.conformance.kit import CHANNEL, FLOW, StoreKit, message


class LedgerConformance(StoreKit):
    """The rules of the dead letters and the ledger."""

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
