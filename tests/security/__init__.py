"""Tests of threats, of secrets in texts, and of encryption."""
