"""RabbitMQ's management API. Only it reports the policies and bindings of a queue."""

import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, Field, TypeAdapter

from flowkit.errors import BrokerUnavailable, ConfigError
from flowkit.url import exposed, is_loopback, mask

T = TypeVar("T")
SETTING = "FLOWKIT_BROKER_MANAGEMENT_URL"
ANSWER_SECONDS = 10.0
TELL_SECONDS, ASK_SECONDS = 15.0, 0.5
"""Seconds that a start waits for RabbitMQ to report the policy of a new queue, and seconds between its requests."""
MOST_BYTES = 16 * 1024 * 1024
"""Bytes of an answer that are read, at most."""
NOT_FOUND, DENIED, REDIRECTS = 404, (401, 403), range(300, 400)
KEEPS = {"overflow": "reject-publish"}
DISCARDS = ("overflow", "message-ttl", "expires", "delivery-limit")
"""Settings that a policy must not have, except the values in `KEEPS`. A policy's overflow overrides a quorum queue's
own argument, and of two limits the lower one applies."""
EVERYTHING = frozenset({"^", "$", ".", "^.", ".$", "(.*)", "^(.*)$"}).union(
    begin + some + end for begin in ("", "^") for some in (".*", ".+") for end in ("", "$")
)
"""Patterns that match every name: RabbitMQ searches for them anywhere in a name. Other patterns are not evaluated:
their syntax is not Python's."""
Empty = Annotated[list[Any], Field(max_length=0)]


class _Policy(BaseModel):
    """A policy of the virtual host, for whichever queues."""

    definition: dict[str, Any]


class _Queue(BaseModel):
    """The policies that RabbitMQ reports for a queue."""

    policy: str | None = None
    operator_policy: str | None = None
    effective_policy_definition: dict[str, Any] | Empty | None = None
    """The merged definition of both policies. None: not reported yet. Old versions report an empty one as a list."""


class _Permission(BaseModel):
    """The rights of a user in the virtual host, as patterns of names."""

    user: str
    configure: str
    write: str
    read: str


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would send the password to whatever host the answer names."""

    def redirect_request(self, *_: Any) -> None:
        """Return None: the redirect itself is the answer, and no other request is sent."""


class Management:
    """Reads the management API. Every call blocks; any thread may call it."""

    def __init__(self, url: str, vhost: str) -> None:
        """`url`: http(s)://user:password@host:port. Raises ConfigError if it is no such URL."""
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{SETTING} is {mask(url)}; write http://user:password@host:15672, or https://…")
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        self._shown = mask(url)
        self._root = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
        self._vhost = vhost
        # Without TLS, a proxy of the environment would see the password, even that of an API on this machine.
        proxies = {scheme: proxy for scheme, proxy in urllib.request.getproxies().items() if scheme == "https"}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _StayHere)
        clear = parts.scheme == "http" and not is_loopback(parts.hostname)
        self.doubts = exposed(SETTING, url, [parts.hostname] if clear else [], "write https://")
        """Warnings about the connection to the API."""

    def audit(self, queues: Sequence[str], patience: float = TELL_SECONDS) -> None:
        """Raise ConfigError if a policy lets one of these queues lose messages silently, and BrokerUnavailable if the
        API does not answer.

        Only RabbitMQ knows the policy of a queue, and reports it within ten seconds of a change. If the virtual host
        has any dangerous policy, this waits up to `patience` seconds for the policy of a new queue, and then raises
        BrokerUnavailable.
        """
        policies = [one for kind in ("policies", "operator-policies") for one in self._read(kind, list[_Policy])]
        if not any(_discards(one.definition) for one in policies):
            return
        deadline = time.monotonic() + patience
        for name in queues:
            queue = self._queue(name)
            while queue.effective_policy_definition is None:
                if time.monotonic() >= deadline:
                    raise BrokerUnavailable(f"RabbitMQ does not report the policy of queue {name} yet")
                time.sleep(ASK_SECONDS)
                queue = self._queue(name)
            for rule, said in _discards(dict(queue.effective_policy_definition)).items():
                policy = " and ".join(filter(None, (queue.policy, queue.operator_policy)))
                raise ConfigError(
                    f"RabbitMQ's policy {policy} gives queue {name} {rule}={said}, so that messages vanish silently; "
                    "exclude the queues flowkit.* from it"
                )

    def rights(self, user: str) -> list[str]:
        """Return a sentence for each user with excessive rights in the virtual host. `user` is FlowKit's own. Raises
        like `audit`."""
        found = self._allowed("vhosts", list[_Permission], "/permissions")
        if found is None:
            return ["the rights of RabbitMQ's users are not audited: that needs a user with the tag administrator"]
        told = []
        for one in found:
            rights = {"configure": one.configure, "write": one.write, "read": one.read}
            free = [right for right, pattern in rights.items() if pattern in EVERYTHING]
            if free:
                told.append(
                    f"user {one.user} of RabbitMQ{', which FlowKit uses,' if one.user == user else ''} may "
                    f"{_and(free)} everything in virtual host {self._vhost}; docs/guides/security.md says what it needs"
                )
        return told or ["no user of RabbitMQ has a right to everything in this virtual host"]

    def is_bound(self, queue: str, exchange: str) -> bool:
        """Whether a queue is bound to an exchange. Raises like `audit`."""
        return bool(self._read("bindings", list[Any], f"/e/{quote(exchange, safe='')}/q/{quote(queue, safe='')}"))

    def _queue(self, name: str) -> _Queue:
        """The policies of a queue that RabbitMQ reports so far; none for a deleted queue."""
        columns = "name,policy,operator_policy,effective_policy_definition"  # without name, an empty answer is a list
        return self._read("queues", _Queue, f"/{quote(name, safe='')}?columns={columns}", missing=_Queue())

    def _allowed(self, kind: str, type: type[T], which: str) -> T | None:
        """Read like `_read`; None if FlowKit's user may not see these."""
        try:
            return self._read(kind, type, which)
        except _Denied:
            return None

    def _read(self, kind: str, type: type[T], which: str = "", missing: T | None = None) -> T:
        """Read the objects of a kind in the virtual host; return `missing`, if given, when there are none."""
        url = f"{self._root}/api/{kind}/{quote(self._vhost, safe='')}{which}"
        request = urllib.request.Request(url, headers=self._headers)  # noqa: S310 - the scheme is checked
        try:
            with self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
                return TypeAdapter(type).validate_json(answer.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == NOT_FOUND and missing is not None:
                return missing
            why = "check user and password, and that it is RabbitMQ's management API"
            if error.code in REDIRECTS:
                why = "a redirect is not followed, because the password would go along; name the API's own address"
            refusal = _Denied if error.code in DENIED else ConfigError
            raise refusal(f"{SETTING} is {self._shown}, which answers {error.code} {error.reason}; {why}") from None
        except OSError as error:
            raise BrokerUnavailable(f"{SETTING} is {self._shown}, which cannot be reached: {error}") from None
        except (HTTPException, ValueError):
            raise ConfigError(f"{SETTING} is {self._shown}, which is no management API of RabbitMQ") from None


class _Denied(ConfigError):
    """FlowKit's user lacks the right to see this, or has another password."""


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _discards(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a policy that let messages vanish."""
    return {rule: definition[rule] for rule in DISCARDS if definition.get(rule) not in (None, KEEPS.get(rule))}
