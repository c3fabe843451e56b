"""A private network: its hosts are Linux namespaces, and the links between them can be cut."""

import os
import random
import shutil
import subprocess
from typing import Literal, NamedTuple

Cable = Literal["inside", "outside"]

# Runs until the pipe from the test run closes. What still runs in a namespace keeps it, without its name.
GUARDIAN = """
cat >/dev/null
for name in "$@"; do ip netns delete "$name"; done
"""


class Place(NamedTuple):
    """One of its hosts."""

    namespace: str
    inside: str
    """Its address for the other hosts."""
    outside: str
    """Its address for the machine, and so for every process that is in no namespace."""


class Network:
    """So many hosts, each with two cables: inside to the others, outside to the machine. Call `close` in the end.

    The addresses are of the range that is set aside for tests of networks, 198.18.0.0/15, which nobody else has.
    """

    def __init__(self, hosts: int) -> None:
        """Raises PermissionError if no network can be made here: that needs Linux, iproute2 and root."""
        number = _number()
        self._hub = _name(number)
        self.places = [
            Place(f"{self._hub}-{host}", _address(number, host), _address(number, 128 + host))
            for host in range(1, hosts + 1)
        ]
        names = [self._hub, *(place.namespace for place in self.places)]
        self._guardian = subprocess.Popen(
            ["/bin/sh", "-c", GUARDIAN, "guardian", *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self.machine = _address(number, 254)
            """The address of the machine, at the outside."""
            self._connect(self.machine)
        except BaseException:
            self.close()
            raise

    def pull(self, place: Place, cable: Cable) -> None:
        """Pull a cable: what is sent over it is lost, and nobody hears of that."""
        _ip("-n", self._hub, "link", "set", _port(place, cable), "nomaster")

    def plug(self, place: Place, cable: Cable) -> None:
        """Plug it in again. Does nothing if it is."""
        _ip("-n", self._hub, "link", "set", _port(place, cable), "master", cable)

    def close(self) -> None:
        """Delete everything. Nothing may run in it any more."""
        self._guardian.communicate()

    def _connect(self, machine: str) -> None:
        hub = self._hub
        cables: tuple[Cable, ...] = ("inside", "outside")
        for cable in cables:
            _ip("-n", hub, "link", "add", cable, "up", "type", "bridge")
        for place in self.places:
            at = ("-n", place.namespace)
            _ip("netns", "add", place.namespace)
            _ip(*at, "link", "set", "lo", "up")
            for cable, address in zip(cables, (place.inside, place.outside), strict=True):
                port = _port(place, cable)
                _ip("link", "add", port, "netns", hub, "type", "veth", "peer", cable, "netns", place.namespace)
                _ip(*at, "address", "add", f"{address}/25", "dev", cable)
                _ip(*at, "link", "set", cable, "up")
                _ip("-n", hub, "link", "set", port, "up")
                self.plug(place, cable)
        _ip("link", "add", hub, "type", "veth", "peer", "machine", "netns", hub)
        _ip("-n", hub, "link", "set", "machine", "master", "outside", "up")
        _ip("address", "add", f"{machine}/25", "dev", hub)
        _ip("link", "set", hub, "up")


def _number() -> int:
    """That of a network which nobody else has: its first namespace is made."""
    if not shutil.which("ip") or os.geteuid() != 0:
        raise PermissionError("no network can be made here: that needs iproute2 (tests/services/install) and root")
    for number in random.sample(range(512), 50):
        made = subprocess.run(["ip", "netns", "add", _name(number)], capture_output=True, text=True, check=False)
        if not made.returncode:
            return number
    raise PermissionError(f"no network can be made here: {made.stderr}")


def _name(number: int) -> str:
    return f"flowkit{number}"


def _address(number: int, host: int) -> str:
    return f"198.{18 + number // 256}.{number % 256}.{host}"


def _port(place: Place, cable: Cable) -> str:
    """Where a cable of a host comes in at the hub."""
    return f"{cable}{place.namespace.rpartition('-')[2]}"


def _ip(*arguments: str) -> None:
    ran = subprocess.run(["ip", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)} failed: {ran.stderr}")
