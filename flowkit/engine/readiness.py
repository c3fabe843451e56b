"""Readiness: the state of a worker, for the fleet, for its supervisor and for probes."""

from flowkit.engine.in_flight import Slots
from flowkit.ports import Transport

NAMED = 3
"""The number of flows that a state names."""


class Readiness:
    """The state of one worker. Any thread may read and set it."""

    def __init__(self, slots: Slots, transport: Transport) -> None:
        self._slots = slots
        self._transport = transport
        self._state = "starting"

    @property
    def state(self) -> str:
        """`starting`, `ready`, `unready` or `draining`. Heartbeats report it to the fleet; the supervisor sees it at
        once."""
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state
        self._slots.ready = state == "ready"

    @property
    def condition(self) -> str:
        """The state, with the flows that keep the worker from being ready."""
        hindered = sorted(self._transport.hindered)
        if self.state != "unready" or not hindered:
            return self.state
        more = f" and {len(hindered) - NAMED} more" if len(hindered) > NAMED else ""
        return f"unready: {', '.join(hindered[:NAMED])}{more}"

    def judge(self) -> None:
        """Set the state when all services can be reached: `ready`, or `unready` if a flow cannot receive."""
        self.state = "unready" if self._transport.hindered else "ready"
