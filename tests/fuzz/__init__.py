"""The fuzz: what anybody can hand to FlowKit, through its door and past it; all of it has to be accounted for."""
