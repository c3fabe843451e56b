"""The management API of RabbitMQ as others may answer in its place."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flowkit.errors import BrokerUnavailable, ConfigError
from flowkit.transports.rabbitmq.management import Management

NOTHING: dict[str, str] = {}


class Api(ThreadingHTTPServer):
    """Answers each path as the test says, with 404 where it says nothing, and notes what came."""

    def __init__(self, answers: dict[str, tuple[int, dict[str, str], bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.answers = answers
        self.seen: list[tuple[str, str | None]] = []
        """Path and password, in the order of the requests."""

    @property
    def url(self) -> str:
        return f"http://user:hidden-secret@127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Authorization"]))
        status, headers, body = self.server.answers.get(self.path.partition("?")[0], (404, NOTHING, b"{}"))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Tests need no log of it."""


@contextmanager
def serving(**answers: bytes | str) -> Iterator[Api]:
    """An API that answers for kinds: with a body, or by a redirect to a URL."""

    def told(answer: bytes | str) -> tuple[int, dict[str, str], bytes]:
        return (200, NOTHING, answer) if isinstance(answer, bytes) else (302, {"Location": answer}, b"")

    with Api({f"/api/{kind.replace('_', '-')}/%2F": told(answer) for kind, answer in answers.items()}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_redirect_is_not_followed_and_gets_no_password() -> None:
    with serving(policies=b"[]") as other, serving(policies=f"{other.url}/api/policies/%2F") as api:
        with pytest.raises(ConfigError, match=r"answers 302 .*a redirect is not followed") as refused:
            Management(api.url, "/").audit(["flowkit.1.shop.orders"])
        assert len(api.seen) == 1
        assert other.seen == []
        assert "hidden-secret" not in str(refused.value)


def test_a_proxy_of_the_environment_gets_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be sent in the clear, also where the API is on the same machine."""
    with serving(policies=b"[]") as proxy, serving(policies=b"[]", operator_policies=b"[]") as api:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
        Management(api.url, "/").audit(["flowkit.1.shop.orders"])
        assert proxy.seen == []
        assert len(api.seen) == 2


@pytest.mark.parametrize(
    "answer",
    [b"no JSON", b'{"name": "no list"}', b'[{"name": "no definition"}]', b"[" * 100_000],
    ids=["text", "object", "stranger", "deep"],
)
def test_what_is_no_management_api_is_named(answer: bytes) -> None:
    with serving(policies=answer) as api, pytest.raises(ConfigError, match="is no management API of RabbitMQ"):
        Management(api.url, "/").audit(["flowkit.1.shop.orders"])


def test_a_server_that_speaks_no_http_is_named() -> None:
    with serving() as api:
        api.RequestHandlerClass = lambda request, *_: request.sendall(b"AMQP\x00\x00\x09\x01\r\n")
        with pytest.raises(ConfigError, match="is no management API of RabbitMQ"):
            Management(api.url, "/").audit(["flowkit.1.shop.orders"])


POLICY = b'[{"name": "theirs", "pattern": "(?|", "definition": {"message-ttl": 5}}]'


def test_a_policy_that_rabbitmq_does_not_tell_yet_is_no_policy_that_is_fine() -> None:
    """A queue that was made just now has no policy in the answer, nor the lack of one."""
    with serving(policies=POLICY, operator_policies=b"[]") as api:
        api.answers["/api/queues/%2F/new"] = (200, NOTHING, b'{"name": "new"}')
        with pytest.raises(BrokerUnavailable, match="does not report the policy of queue new yet"):
            Management(api.url, "/").audit(["new"], patience=0)


@pytest.mark.parametrize("empty", [b"{}", b"[]"])
def test_a_queue_that_no_policy_applies_to_is_fine(empty: bytes) -> None:
    with serving(policies=POLICY, operator_policies=b"[]") as api:
        api.answers["/api/queues/%2F/old"] = (200, NOTHING, b'{"effective_policy_definition": %s}' % empty)
        Management(api.url, "/").audit(["old"])
