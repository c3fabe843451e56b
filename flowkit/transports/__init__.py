"""Transports: they carry copies of messages from the store to the flows."""
