"""FlowKit beside its peers: contenders in processes of their own, which do exactly the same work."""
