"""The rules of replies: each belongs to one request."""

from flowkit.ports import Asked, Retention
from flowkit.testing.conformance.kit import CHANNEL, FLOW, StoreKit


class AnswersConformance(StoreKit):
    """The rules of replies: each belongs to one request."""

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
