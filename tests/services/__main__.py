"""Run a command with a private RabbitMQ and PostgreSQL, which its environment names:

python -m tests.services COMMAND …
"""

import os
import subprocess
import sys
from contextlib import closing

from tests.services.postgresql import PostgreSQL
from tests.services.rabbitmq import RabbitMQ


def main(command: list[str]) -> int:
    """Start the servers, run the command, and leave nothing behind. Returns its exit code."""
    with closing(PostgreSQL()) as database, closing(RabbitMQ()) as broker:
        print("starting PostgreSQL and RabbitMQ", flush=True)
        database.start()
        broker.start()
        settings = {"FLOWKIT_DATABASE_URL": database.create_database("flowkit"), "FLOWKIT_BROKER_URL": broker.url()}
        return subprocess.run(command, env={**os.environ, **settings}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
