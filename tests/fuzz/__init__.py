"""The fuzz: hostile inputs through FlowKit's entry points and past them. Each input has to be accounted for."""
