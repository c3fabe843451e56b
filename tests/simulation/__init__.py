"""The simulation: the real engine of several workers under one seeded scheduler, a virtual clock and planned faults.

Every thread of every process is a greenlet. It gives up control before each call that leaves the engine (a statement,
a publish, an acknowledgement, a wait), and there the scheduler decides who goes on, and what breaks. Nothing in
`flowkit/` knows of it. What is not simulated: real threads, the event loop and its handlers, the pika adapter, how
SQLite's writers wait for each other, and PostgreSQL; real processes cover those (`tests/chaos`).
"""
