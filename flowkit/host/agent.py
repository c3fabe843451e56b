"""The agent: answers HAProxy's agent checks with the instance's capacity (HAProxy's manual, `agent-check`)."""

import socket
import threading
from collections.abc import Callable

ANSWER_SECONDS = 1.0
PAUSE_SECONDS = 0.1


class Agent:
    """Answers each connection with one line and closes it, on its own thread."""

    def __init__(self, listening: socket.socket, answer: Callable[[], str]) -> None:
        """Start the thread. `answer` returns the line: `up ready 100%`, `drain` or `down`. It must not block."""
        self._listening = listening
        self._answer = answer
        self._closing = threading.Event()
        threading.Thread(target=self._serve, name="flowkit-agent", daemon=True).start()

    def close(self) -> None:
        """Stop answering, and close the socket."""
        self._closing.set()
        self._listening.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                asking, _ = self._listening.accept()
            except OSError:  # the socket is closed, or the process has too many open files
                if self._closing.wait(PAUSE_SECONDS):
                    return
                continue
            with asking:
                asking.settimeout(ANSWER_SECONDS)
                try:
                    asking.sendall(f"{self._answer()}\n".encode())
                except OSError:
                    continue  # the client closed the connection before the answer
