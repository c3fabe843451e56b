"""Tests of what stands beside the packages: mistakes in an app, settings, the publisher, dependencies."""
