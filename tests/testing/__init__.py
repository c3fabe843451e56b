"""Tests of what FlowKit gives to tests of apps."""
