"""The engine: pipeline, lane, relay, worker, supervisor. Every loop is a step that a test can call."""
