"""Processes: an instance with its supervisor, its worker processes and its warm spares."""
