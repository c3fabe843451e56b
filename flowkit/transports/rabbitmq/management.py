"""RabbitMQ's management API, which alone tells the policies that apply to a queue, and its bindings."""

import json
import re
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from flowkit.errors import BrokerUnavailable, ConfigError
from flowkit.url import mask

SETTING = "FLOWKIT_BROKER_MANAGEMENT_URL"
ANSWER_SECONDS = 10.0
KEEPS = {"overflow": "reject-publish"}
DISCARDS = ("overflow", "message-ttl", "expires", "delivery-limit")
"""What a policy must not say, unless it says what `KEEPS` does. A policy's overflow wins over a quorum queue's own
argument, and of two limits the lower one holds."""
APPLY = ("all", "queues", "quorum_queues")
"""To what a policy applies that concerns a quorum queue."""


class Management:
    """Reads the management API. Every call blocks; any thread may call it."""

    def __init__(self, url: str, vhost: str) -> None:
        """`url`: http(s)://user:password@host:port. Raises ConfigError when it cannot be one."""
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

    def audit(self, queues: Sequence[str]) -> None:
        """Raise ConfigError where a policy lets one of these queues lose messages silently; BrokerUnavailable when
        the API does not answer.

        What the API says of a queue itself lags behind by seconds, so the policies are matched here, as RabbitMQ does.
        """
        for kind in ("policies", "operator-policies"):
            policies = self._read(kind)
            policy: dict[str, Any]
            for queue in queues:
                matching = [one for one in policies if one["apply-to"] in APPLY and re.search(one["pattern"], queue)]
                policy = max(matching, key=lambda one: int(one["priority"]), default={"definition": {}})
                for rule in DISCARDS:
                    said = policy["definition"].get(rule)
                    if said is not None and said != KEEPS.get(rule):
                        raise ConfigError(
                            f"RabbitMQ's policy {policy['name']} gives queue {queue} {rule}={said}, by which messages "
                            "vanish silently; leave the queues flowkit.* out of it"
                        )

    def is_bound(self, queue: str, exchange: str) -> bool:
        """Whether a queue is bound to an exchange. Raises as `audit` does."""
        return bool(self._read("bindings", f"/e/{quote(exchange, safe='')}/q/{quote(queue, safe='')}"))

    def _read(self, kind: str, which: str = "") -> list[dict[str, Any]]:
        """The things of a kind in our virtual host."""
        url = f"{self._root}/api/{kind}/{quote(self._vhost, safe='')}{which}"
        request = urllib.request.Request(url, headers=self._headers)  # noqa: S310 - the scheme is checked
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            error.close()
            raise ConfigError(
                f"{SETTING} is {self._shown}, which answers {error.code} {error.reason}; check user and password, and "
                "that it is RabbitMQ's management API"
            ) from None
        except OSError as error:
            raise BrokerUnavailable(f"{SETTING} is {self._shown}, which cannot be reached: {error}") from None
        except ValueError:
            raise ConfigError(f"{SETTING} is {self._shown}, which is no management API of RabbitMQ") from None
        return list(found)
