"""Connectors of FlowKit: sources and sinks of outside systems, built on its public names only."""
