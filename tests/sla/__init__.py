"""Tests of the service level agreement."""
