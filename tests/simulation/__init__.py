"""The simulation: the real engine of several workers under one seeded scheduler, a virtual clock and planned faults.

Every thread of every process is a greenlet. It yields before each call that leaves the engine (a statement, a publish,
an acknowledgement, a wait). There the scheduler chooses the next greenlet, and the fault, if any. No code in `flowkit/`
knows of the simulation. Not simulated are real threads, the event loop and its handlers, the pika adapter, how SQLite's
writers wait for each other, and PostgreSQL; real processes cover those (`tests/chaos`).
"""
