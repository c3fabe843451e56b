"""Chaos: real workers on real services, everything that can break does, and the clients' logs are the oracle."""
