"""Transports: what carries messages between flows."""
