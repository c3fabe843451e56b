"""Tests of the project as a whole: its docs, its language, its structure and its surface."""
