"""Tests of the analysis of an app's source."""
