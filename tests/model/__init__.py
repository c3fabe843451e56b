"""Tests of channels, flows and bodies."""
