"""The full proof: every tool with its full numbers, and a report."""
