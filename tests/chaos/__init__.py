"""Chaos: breaks real workers and real services in every possible way. The clients' logs are the oracle."""
