"""FlowKit beside its peers: contenders in separate processes, which do exactly the same work."""
