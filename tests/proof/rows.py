"""The failures to survive, by number. Each test is named after the row that it proves."""

import re
from pathlib import Path

from flowkit.testing import conformance

ROOT = Path(__file__).parents[2]
ROWS = {
    1: "a worker is killed at any step",
    2: "a poison message crashes workers, and its neighbours are charged for it",
    3: "a paused worker wakes after its message was redelivered",
    4: "the broker's timeout of consumers closes the channel",
    5: "a lease ends while the handler runs",
    6: "all workers die at once",
    7: "SIGTERM under load",
    8: "a slow message starves its neighbours",
    9: "a long handler blocks heartbeats",
    10: "a handler never returns",
    11: "a worker's memory grows",
    12: "confirms are lost after the publish",
    13: "a queue's leader is killed",
    14: "a publish without a queue",
    15: "a refused declaration closes the channel",
    16: "a stale or double acknowledgement",
    17: "a memory or disk alarm of the broker",
    18: "the broker restarts",
    19: "a partition, with the client on the minority's side",
    20: "the majority of brokers is lost",
    21: "dead letters inside the broker",
    22: "arguments and policies that discard",
    23: "a connection that swallows everything",
    24: "a message larger than the broker's limit",
    25: "clients that reconnect all at once",
    26: "the broker and its disk are gone",
    27: "the connection is lost during COMMIT",
    28: "the database restarts in a transaction",
    29: "a failover",
    30: "a cancelled wait for the synchronous standby",
    31: "a frozen primary whose kernel still accepts",
    32: "an old primary comes back",
    33: "serialization failures and deadlocks",
    34: "two copies of a message run at once",
    35: "the inbox was purged before a redelivery",
    36: "a polling cursor skips rows",
    37: "a million rows wait",
    38: "a bad row blocks the others",
    39: "SQLite: a read transaction that turns into a writing one",
    40: "SQLite: the log grows under a pinned reader",
    41: "SQLite: commits lost at a power cut",
    42: "SQLite: versions that corrupt, connections carried over fork",
    43: "the disk is full",
    44: "clocks of workers differ",
    45: "daylight saving time in schedules",
    46: "a schedule missed while all were down",
    47: "two versions at work during a migration",
    48: "malformed bodies and headers",
    49: "foreign messages without an id",
    50: "a handler ends the transaction that it was given",
    51: "a handler swallows a database error",
    52: "a deferred constraint fails at COMMIT",
    53: "hot rows: batches deadlock each other",
    54: "the same id twice in a batch",
    55: "two producers use the same id",
    56: "a duplicate acknowledged from what the standby does not have",
    57: "an owner frozen in its transaction",
    58: "fan-out with a queue unbound",
    59: "a multiple acknowledgement covers what is in work",
    60: "given back messages return in another order",
    61: "a retry taken for a duplicate, or a forked one",
    62: "an idle lane leaves its last rows to the relay",
    63: "a slow handler blocks SQLite's writers",
    64: "async handlers share a connection",
    65: "a crash charged before the first claim, a missing inbox row",
    66: "an effect added before the exception",
    67: "a batch given up half-way",
    68: "more flows than database connections",
    69: "the broker setting changes while rows wait",
}
WAITS = {
    26: "a journal",
    45: "schedules",
    46: "schedules",
    47: "versions side by side",
    60: "order by key",
}
"""What a row waits for that is not there yet."""
THREATS = {
    "code in data": ("code_in_data",),
    "secrets in logs, URLs and errors": ("secrets", "wrong_passwords"),
    "table and queue names": ("names",),
    "header injection": ("control_characters",),
    "TLS that is not verified": ("tls",),
    "guests and other tenants of a broker": ("tenants",),
    "XML and archives": (),
    "requests to inner addresses by an HTTP connector": (),
    "forged and replayed webhooks": (),
    "scripts in payloads on a dashboard": (),
    "the admin's HTTP": (),
    "paths that leave their folder": (),
}
"""Threat -> what the names of its tests begin with, after `test_threat_`."""
TEST = re.compile(r"^ *def (test_rows?_\d[a-z0-9_]+)", re.MULTILINE)
THREAT = re.compile(r"^ *def test_threat_([a-z0-9_]+)", re.MULTILINE)
NUMBERED = re.compile(r"test_rows?_(\d+(?:_and_\d+)*)")


def shown() -> dict[int, list[str]]:
    """Row -> its tests, as file::test."""
    found: dict[int, list[str]] = {number: [] for number in ROWS}
    files = {str(path.relative_to(ROOT)): path for path in sorted((ROOT / "tests").rglob("test_*.py"))}
    kit = Path(conformance.__file__).parent  # wherever it is installed
    files |= {f"flowkit/testing/conformance/{path.name}": path for path in sorted(kit.glob("*.py"))}
    for name, path in files.items():
        for test in TEST.findall(path.read_text()):
            numbered = NUMBERED.match(test)
            assert numbered is not None, test
            for number in map(int, numbered[1].split("_and_")):
                found[number].append(f"{name}::{test}")
    return found


def defended() -> dict[str, list[str]]:
    """Threat -> its tests, as file::test."""
    found: dict[str, list[str]] = {threat: [] for threat in THREATS}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for test in THREAT.findall(path.read_text()):
            threat = next(threat for threat, names in THREATS.items() if test.startswith(names))
            found[threat].append(f"{path.relative_to(ROOT)}::test_threat_{test}")
    return found
