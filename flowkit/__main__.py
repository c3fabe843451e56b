"""`python -m flowkit` is the command `flowkit`."""

from flowkit.cli import main

main()
