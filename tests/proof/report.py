"""Writes the results of the proof as a page."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.proof.rows import ROWS, WAITS, defended, shown

WRITTEN = (
    "What each part found in full is in [proof/](proof). Parts run beside each other, so the "
    "times below are those of a machine that is busy with the others."
)
NOT_PROVEN = (
    "The simulation runs threads as greenlets and leaves out the event loop of `async def` handlers, pika and "
    "PostgreSQL; there, chaos and the tests with real processes show what they met, not all that could be met.",
    "Everything ran on one machine: no real power cut, no disk that lies about a sync, no network but the loopback and "
    "cables between namespaces.",
    "On RabbitMQ a lane has fetched up to two batches ahead. If its handler hangs, these wait until it ends, at the "
    "longest for its deadline; all other messages go on (row 8 is shown where rows are the queue).",
    "With an asynchronous standby, what a failover loses is measured and not prevented.",
    "An old primary that comes back is refused by processes that have seen the new one. One that starts while both are "
    "there takes the first that its URL names: fence the old one, as PostgreSQL's documentation demands.",
    "A handler's effects outside of its transaction are its own: see [proving.md](guides/proving.md).",
)
Found = Mapping[str, Any]


def write(path: Path, parts: Mapping[str, str], found: Mapping[str, Found], older: Collection[str]) -> None:
    """Write what the parts found, by name; `older` ones ran on code that has changed since. Parts that do the same are
    slices of one."""
    lines = ["# Proof", "", "Written by `make proof`.", "", *([WRITTEN, ""] if found else [])]
    for what in dict.fromkeys(parts.values()):
        names = [name for name in parts if parts[name] == what]
        done = [found[name] for name in names if name in found]
        lines += [f"## {what[0].upper()}{what[1:]}", ""]
        if len(done) < len(names):
            lines += [f"Not run yet: {', '.join(name for name in names if name not in found)}.", ""]
        for name, one in ((name, found[name]) for name in names if name in found):
            since = "; the code has changed since" if name in older else ""
            lines += [f"`{one['command']}`, {one['seconds']:,} s, commit {one['commit']}{since}.", ""]
        if done:
            say = SAID[names[0].partition("-")[0]]
            lines += [f"- {line}" for line in say(together([one["found"] for one in done]))] + [""]
    machines = {str(one["machine"]): one["machine"] for one in found.values()}
    lines += ["## Where it ran", ""]
    lines += [f"- {', '.join(f'{key} {value}' for key, value in one.items())}" for one in machines.values()]
    lines += ["", "## Not proven", "", *(f"- {line}" for line in NOT_PROVEN), "", "## Failures and their tests", ""]
    ran = found["rows"]["found"]["tests"] if "rows" in found else {}
    lines += ["Behind each test: how many cases passed, as the part *Each failure by itself* ran it.", ""]
    lines += ["| # | failure | tests |", "|---|---|---|"]
    for number, tests in shown().items():
        why = f"waits for {WAITS[number]}" if number in WAITS else "**none yet**"
        cases = [f"`{test}` {ran.get(test.partition('::')[2], {}).get('passed', 'not run')}" for test in tests]
        lines.append(f"| {number} | {ROWS[number]} | {'<br>'.join(cases) or why} |")
    lines += ["", "| threat | tests |", "|---|---|"]
    for threat, tests in defended().items():
        lines.append(f"| {threat} | {'<br>'.join(f'`{test}`' for test in tests) or 'waits for its feature'} |")
    path.write_text("\n".join(lines) + "\n")


def together(slices: Sequence[Found]) -> dict[str, Any]:
    """What slices of one part found: numbers add up, and lists; a text is the same in all."""
    sums: dict[str, Any] = {}
    for one in slices:
        for name, value in one.items():
            if name not in sums:
                sums[name] = value
            elif isinstance(value, Mapping):
                sums[name] = together([sums[name], value])
            elif not isinstance(value, str):
                sums[name] = sums[name] + value
    return sums


def simulation(found: Found) -> list[str]:
    kinds: dict[str, Counter[str]] = {}
    for where, place in found["faults"].items():
        for kind, count in place.items():
            kinds.setdefault(kind, Counter())[where] = count
    accepted = found["accepted"]
    least = min(
        (count, f"{kind} at {where}")
        for kind, places in kinds.items()
        for where, count in places.items()
        if where not in accepted
    )
    return [
        f"{found['seeds']:,} runs, {len(found['failed'])} failed; {found['virtual_seconds'] / 3600:,.0f} virtual hours",
        f"met: {counted(found['counts'])}",
        f"the rarest fault: {least[1]}, {least[0]:,} times",
        *(
            f"seldom met, and accepted to be hit less often: {where}, {found['met'].get(where, 0):,} times; {why}"
            for where, why in accepted.items()
        ),
        *(f"{kind}, {places.total():,} times: {counted(places)}" for kind, places in sorted(kinds.items())),
    ]


def mutants(found: Found) -> list[str]:
    seen = found["seen_in_run"]
    return [
        f"{len(seen)} of {found['mutants']} seen, each within {found['runs']} runs of its shape; the last in run "
        f"{max(seen.values())}"
    ]


def chaos(found: Found) -> list[str]:
    losses = [f"{orders:,} orders of {seconds:g} s" for orders, seconds in found["lost_by_failover"]]
    return [
        f"{found['orders']:,} orders accepted, {found['handler_runs']:,} runs of handlers: {found['runs_failed']:,} "
        f"failed as ordered, {found['runs_repeated']:,} were repeated; {found['messages_taken_over']:,} messages were "
        "taken over by another process",
        f"lost {found['lost']:,}, applied twice {found['twice']}, there again under another id {found['again']}",
        *([f"lost by failover, of what was acknowledged: {', '.join(losses)}"] if losses else []),
        f"attempts charged to no failure: {found['attempts_charged']}",
        f"faults: {counted(found['faults'])}",
        f"kills right after a handler began: {found['kills_after_a_run_began']}; in the middle of one: "
        f"{found['kills_with_messages_in_flight']}",
        f"at rest {found['drained_seconds']:g} s after the last fault",
    ]


def rows(found: Found) -> list[str]:
    tests = found["tests"].values()
    return [
        f"{len(tests)} tests, {sum(one['passed'] for one in tests):,.0f} cases passed in "
        f"{sum(one['seconds'] for one in tests):,.0f} s, with the numbers that the list of failures asks for"
    ]


def fuzz(found: Found) -> list[str]:
    lines = [f"{found['inputs']:,} inputs of seed {found['seed']}, fingerprint {found['fingerprint']}"]
    for name, one in found["transports"].items():
        lines.append(f"{name}: {counted(one['ends'])}; {one['faults']} faults; {one['seconds']:g} s")
    return lines


def soak(found: Found) -> list[str]:
    latency = ", ".join(f"{name} {value:,} ms" for name, value in found["latency_ms"].items())
    growth = ", ".join(f"{value:g}" for value in found["memory_growth_mb_per_hour"])
    return [
        *chaos(found),
        f"{found['rate']:g} orders a second for {found['minutes']:g} minutes; from accepted to the last of four "
        f"handlers, while something broke every ten seconds: {latency} ({found['probes']:,} orders, seen to 50 ms)",
        f"memory of the workers at the most {max(found['memory_mb']):g} MB, growth in MB per hour: {growth}",
        f"write-ahead log of SQLite at the most {found['most_log_mb']:g} MB, message rows at the most "
        f"{found['most_rows']:,}, at the end {found['last_rows']:,}",
    ]


def counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda one: -one[1]))


SAID: dict[str, Callable[[Found], list[str]]] = {
    "simulation": simulation,
    "mutants": mutants,
    "chaos": chaos,
    "cluster": chaos,
    "failover": chaos,
    "lagging": chaos,
    "rows": rows,
    "fuzz": fuzz,
    "soak": soak,
}
"""By the name of a part, up to its hyphen."""
