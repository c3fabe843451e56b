"""Connectors to outside systems, built on flowkit's public names alone."""
