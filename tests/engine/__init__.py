"""Tests of the engine: messages, batches, handlers and workers."""
