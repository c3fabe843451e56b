"""Tests of the tools that prove FlowKit: the simulation, chaos, the fuzz, the proof."""
