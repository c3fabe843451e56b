"""`flowkit run` as a host of the fleet: it ends when its input does, and replaces workers quickly."""

import os
import signal
import sys
import threading

from flowkit.cli import main
from flowkit.host import supervisor


def end_with_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # A worker that dies every few seconds is a crash loop to the supervisor, which would wait longer each time.
    supervisor.MOST_BACKOFF_SECONDS = 0.2
    threading.Thread(target=end_with_input, daemon=True).start()
    main()
