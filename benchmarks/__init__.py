"""Benchmarks of asgi_ipc: one file per question, run by ``python -m benchmarks``.

harness.py    workers (interpreters of their own), samples, alternating repetitions
report.py     the Markdown table and the JSON
worker.py     what runs in a worker
links.py      two processes and a message each way: the jobs that questions share
floor.py      yardstick between processes: an unlocked shared ring and an inherited eventfd
in_memory.py  yardstick within one process: Channels' in-memory layer
ours.py       asgi_ipc, made for a run and removed after it

All others are questions: a docstring that asks it, and ``async def run(bench)``.
"""
