"""What runs in a worker: make the subject, then one job per line of standard input.

``python -m benchmarks.worker module:factory '{"option": …}'``. Answers are lines of JSON on
standard output: {"value": …} or {"error": …}, the first one when the subject is ready. The end
of the input ends the worker, a job in progress with it: a runner that dies leaves no worker.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import operator
import sys
import traceback
from typing import Any


def _load(name: str) -> Any:
    """The object that `harness.reference` named."""
    module, _, path = name.partition(":")
    return operator.attrgetter(path)(importlib.import_module(module))


def _answer(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


async def _perform(subject: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        job = _load(request["job"])
        return {"value": await job(subject, *request["args"], **request["kwargs"])}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"}


async def _serve(factory: str, options: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        subject = _load(factory)(**options)
    except Exception as error:
        _answer(error=f"{type(error).__name__}: {error}")
        return
    _answer(value=None)
    try:
        upcoming = asyncio.create_task(reader.readline())
        while line := await upcoming:
            upcoming = asyncio.create_task(reader.readline())
            job = asyncio.create_task(_perform(subject, json.loads(line)))
            # The runner waits for an answer before it asks again: what comes now is the end.
            await asyncio.wait({job, upcoming}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                job.cancel()
                await asyncio.wait({job})
                break
            _answer(**job.result())
    finally:
        if close := getattr(subject, "close", None):
            await close()


def main() -> None:
    """Be a worker."""
    asyncio.run(_serve(sys.argv[1], json.loads(sys.argv[2])))


if __name__ == "__main__":
    main()
