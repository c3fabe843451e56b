"""Handlers: how one is called with a message, and what becomes of its result."""

import inspect
import logging
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from flowkit.message import Message
from flowkit.model.channel import Binding, Channel, Routed, Split
from flowkit.model.outbox import Outbox
from flowkit.model.signature import Signature
from flowkit.ports import Delivery, Giver, UnitOfWork

Logger = logging.LoggerAdapter[logging.Logger]
Getter = Callable[[Delivery, Outbox, Giver], object]
"""Finds one argument of a handler."""


class Call(Protocol):
    """Runs a handler once; what it returns goes into the outbox. The call of an `async def` handler is awaited."""

    def __call__(
        self, body: object, delivery: Delivery, outbox: Outbox, giver: Giver
    ) -> Coroutine[Any, Any, None] | None: ...


class Caller:
    """Calls the handler of one flow."""

    def __init__(self, handler: Signature, binding: Binding, to: Sequence[Channel[Any]]) -> None:
        """`to`: the channels that it may send to."""
        self._handler = handler
        self._binding = binding
        self._to = to

    @property
    def concurrent(self) -> bool:
        """Whether the handler is `async def`: many run at once, on one thread, outside of any transaction."""
        function = self._handler.function
        return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)

    def wants(self) -> dict[str, Any]:
        """The parameters that are injected: name -> type."""
        filled, handler = self._binding.names, self._handler
        return {one.name: handler.hints.get(one.name) for one in handler.parameters if one.name not in filled}

    def call(self, provided: Mapping[type, object], injects: Iterable[type]) -> Call:
        """How to call the handler: one function, made once for a lane."""
        handler, getters = self._binding.call(), self._getters(provided, set(injects))

        def call(body: object, delivery: Delivery, outbox: Outbox, giver: Giver) -> None:
            arguments = {name: get(delivery, outbox, giver) for name, get in getters}
            self._finish(handler(body, **arguments), delivery, outbox, giver)

        async def attend(body: object, delivery: Delivery, outbox: Outbox, giver: Giver) -> None:
            arguments = {name: get(delivery, outbox, giver) for name, get in getters}
            result = handler(body, **arguments)
            if isinstance(result, AsyncIterator):
                async for value in result:
                    self._send_one(value, outbox)
            else:
                self._finish(await result, delivery, outbox, giver)

        return attend if self.concurrent else call

    def _getters(self, provided: Mapping[type, object], transactional: Collection[type]) -> list[tuple[str, Getter]]:
        """How to find each argument that is injected."""
        found: list[tuple[str, Getter]] = []
        for name, wanted in self.wants().items():
            if wanted is Message:
                found.append((name, lambda delivery, outbox, giver: _attempt(delivery)))
            elif wanted is Outbox:
                found.append((name, lambda delivery, outbox, giver: outbox))
            elif wanted == Logger:
                found.append((name, lambda delivery, outbox, giver: self._logger(delivery)))
            elif wanted in transactional or wanted is UnitOfWork:
                found.append((name, _from_giver(wanted)))
            elif wanted in provided:
                found.append((name, _always(provided[wanted])))
        return found

    def _finish(self, result: object, delivery: Delivery, outbox: Outbox, giver: Giver) -> None:
        self._binding.finish(result, delivery, giver, lambda value: self._send(value, outbox))

    def _send(self, result: object, outbox: Outbox) -> None:
        """Returning is publishing: None, a value, a routed value, or many of them by a generator or Split."""
        if result is None:
            return
        if isinstance(result, Iterator | Split):
            for value in result.values if isinstance(result, Split) else result:
                self._send_one(value, outbox)
        else:
            self._send_one(result, outbox)

    def _send_one(self, value: object, outbox: Outbox) -> None:
        if isinstance(value, Routed):
            outbox.route(value)
        elif len(self._to) == 1:
            outbox.route(self._to[0](value))
        else:
            raise self._handler.wrong(
                f"it returned {type(value).__name__}, and to= names {len(self._to)} channels; "
                "return None, or the channel meant: channel(value)"
            )

    def _logger(self, delivery: Delivery) -> Logger:
        flow, message = self._handler.flow, delivery.message
        extra = {"flow": flow, "message_id": message.id, "correlation_id": message.correlation or message.id}
        return logging.LoggerAdapter(logging.getLogger(f"flowkit.flow.{flow}"), extra)


def _attempt(delivery: Delivery) -> Message:
    """The message, which says which attempt this is. The handler may change its headers: they are its own."""
    message = delivery.message
    if not delivery.attempts and not message.headers:
        return message
    return message._replace(attempt=delivery.attempts + 1, headers=dict(message.headers))


def _from_giver(wanted: type) -> Getter:
    return lambda delivery, outbox, giver: giver.give(wanted)


def _always(value: object) -> Getter:
    return lambda delivery, outbox, giver: value
