"""Messages with signatures, and an attacker at the broker."""

HEADERS = {"tenant": "blue"}
