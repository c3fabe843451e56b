"""The agreed level of service: planned, measured and verified."""
