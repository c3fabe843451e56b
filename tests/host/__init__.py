"""Tests of what makes a process: the start, the end, the supervisor, groups."""
