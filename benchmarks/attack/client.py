"""An HTTP client that sends one request at a time."""

import http.client
import json
from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple

from flowkit.sla.testbed import HOST

SECONDS = 60.0


class Answer(NamedTuple):
    """The answer."""

    status: int
    text: str
    headers: Mapping[str, str]


def ask(port: int, method: str, path: str, content: object, headers: Mapping[str, str]) -> Answer:
    """Send one request on a connection of its own. Blocks until it is answered."""
    with closing(http.client.HTTPConnection(HOST, port, timeout=SECONDS)) as connection:
        body = None if content is None else json.dumps(content)
        said = {name: value.encode() for name, value in headers.items()}
        connection.request(method, path, body, {"content-type": b"application/json", **said})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, answer.read().decode(errors="replace"), found)
