"""A private RabbitMQ cluster: three nodes, each on its own host, which can be killed and partitioned."""

import secrets
import time
from collections import Counter
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

from tests.services.network import Network
from tests.services.rabbitmq import DEADLINE, RabbitMQ

NODES = 3
PATIENCE_SECONDS = 25.0
"""It takes a node 2 to 8 s to be with the others again."""
SETTINGS = "cluster_partition_handling = pause_minority\nnet_ticktime = 10\n"
"""A node that sees no majority stops until it does, and it notices within 10 s, not within RabbitMQ's 60: for so long a
queue whose leader was cut off takes nothing, whatever clients do."""


class Cluster:
    """Three nodes. Clients reach each of them. Not thread-safe. Call `close` in the end."""

    def __init__(self) -> None:
        """Raises PermissionError if no network can be made here, and FileNotFoundError if there is no RabbitMQ."""
        secret = secrets.token_urlsafe(16)
        with ExitStack() as undo:
            self._network = undo.enter_context(closing(Network(NODES)))
            names = (f"flowkit@{place.inside}" for place in self._network.places)
            settings = SETTINGS + "".join(
                f"cluster_formation.classic_config.nodes.{number} = {name}\n" for number, name in enumerate(names, 1)
            )
            self.nodes = [
                undo.enter_context(closing(RabbitMQ(settings, place=place, secret=secret)))
                for place in self._network.places
            ]
            self._places = {node.name: place for node, place in zip(self.nodes, self._network.places, strict=True)}
            self._stack = undo.pop_all()
        self._formed = False
        self.restarts = 0
        """How often nodes did not find together by themselves."""

    def start(self) -> None:
        """Whatever was done to it: every node runs and sees the others, and lets clients in."""
        for node in self.nodes:
            self.join(node)
        for node in self.nodes:
            node.begin()
        self.wait()

    def wait(self) -> None:
        """Until all nodes are there, and know that.

        RabbitMQ 3.10 does not always find together again when a partition ends just when it is noticed: then an
        operator restarts who is left out.
        """
        end, patience = time.monotonic() + DEADLINE, time.monotonic() + PATIENCE_SECONDS
        while alone := self._alone():
            if time.monotonic() > end:
                raise RuntimeError("the nodes do not find together:\n" + "\n".join(map(RabbitMQ.said, self.nodes)))
            if self._formed and time.monotonic() > patience:
                self.restarts += 1
                alone.restart()
                patience = time.monotonic() + PATIENCE_SECONDS
            time.sleep(0.1)
        self._formed = True

    def part(self, node: RabbitMQ, clients: bool = True) -> None:
        """A node and the others reach each other no more. `clients`: whether clients reach it still."""
        self._network.pull(self._places[node.name], "inside")
        if not clients:
            self._network.pull(self._places[node.name], "outside")

    def join(self, node: RabbitMQ) -> None:
        """All reach it again."""
        self._network.plug(self._places[node.name], "inside")
        self._network.plug(self._places[node.name], "outside")

    def leader(self, queue: str) -> RabbitMQ:
        """The node that leads a queue.

        RabbitMQ 3.10 sometimes elects none for minutes after its majority was lost: then an operator restarts the
        nodes, one after the other.
        """
        end, patience, rest = time.monotonic() + 2 * DEADLINE, time.monotonic() + PATIENCE_SECONDS, iter(self.nodes)
        while True:
            for asked in filter(RabbitMQ.answers, self.nodes):
                said = asked.evaluate(f'ra_leaderboard:lookup_leader(binary_to_atom(<<"%2F_{queue}">>)).')
                for node in self.nodes:
                    if node.name in said:
                        return node
            if time.monotonic() > end:
                raise RuntimeError(f"{queue} has no leader:\n" + "\n".join(map(RabbitMQ.said, self.nodes)))
            if time.monotonic() > patience and (stuck := next(rest, None)) is not None:
                self.restarts += 1
                stuck.restart()
                self.wait()
                patience = time.monotonic() + PATIENCE_SECONDS

    def url(self, first: RabbitMQ | None = None) -> str:
        """The URL of all nodes, perhaps with one of them before the others."""
        parts = urlsplit(self.nodes[0].url())
        hosts = ",".join(f"{node.host}:{node.port}" for node in sorted(self.nodes, key=lambda node: node is not first))
        return parts._replace(netloc=f"{parts.username}:{parts.password}@{hosts}").geturl()

    def close(self) -> None:
        """Stop and delete everything."""
        self._stack.close()

    def _alone(self) -> RabbitMQ | None:
        """The node that the fewest see, unless all see all."""
        seen = Counter(name for node in self.nodes for name in self._seen(node))
        alone = min(self.nodes, key=lambda node: seen[node.name])
        return alone if seen[alone.name] < NODES else None

    def _seen(self, node: RabbitMQ) -> list[str]:
        """The nodes that run, as one of them knows."""
        said = node.evaluate("rabbit_nodes:all_running().") if node.answers() else ""
        return [one.name for one in self.nodes if one.name in said]
