"""Benchmarks: one file per question, run with ``make bench`` or ``python -m benchmarks``.

The questions: round_trip, one_way, shared_channel, in_process, groups, backlog, idle, memory,
startup. What they stand on:

- harness    samples, alternating repetitions, cases, goals; knows nothing of layers
- processes, worker   workers: seen from the runner, and what runs in their interpreters
- links      two processes and a message each way
- layers     channel layers in a worker, ours and the peers'
- field      who takes part: servers started, options that connect to them
- everybody  all that can connect two processes, as contenders
- floor      the yardstick between two processes: nothing to protect
- raw, iceoryx, original   what is no Channels 4 layer
- ours       prefixes of our own; the asyncio core as a link
- peers, servers   the environment in which all is measured; Redis, NATS, PostgreSQL
- report, plots, pages     Markdown, JSON, images, docs/performance.md

Apart from these: ``channels1.py``, a Channels 1 site on this layer and on the original, and
``interface.py``, the interface server.
"""
