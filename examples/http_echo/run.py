"""Run the echo: an interface server under uvicorn, two workers, and the page they serve.

    python examples/http_echo/run.py [--port 8000]

Ctrl-C, or SIGTERM, stops all of it. A process that ends meanwhile is started again: kill a
worker, on the page or from a shell, and watch the websocket stay open.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from asgi_ipc import AsyncIPCChannelLayer

WORKER = str(Path(__file__).parent / "worker.py")
SHORTEST_LIFE_S = 2.0
PATIENCE_S = 30.0
STOP_S = 10.0


async def keep_running(name: str, command: list[str], environment: dict[str, str]) -> None:
    """Run a process, and another one whenever it ends; when cancelled, stop it."""
    loop = asyncio.get_running_loop()
    while True:
        started = loop.time()
        # In a session of its own, so that Ctrl-C reaches only this script.
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environment}, start_new_session=True
        )
        print(f"{name}: pid {process.pid}", flush=True)
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            await stop(process)
            raise
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        print(f"{name}: ended by {how}", flush=True)
        if status > 0 and loop.time() - started < SHORTEST_LIFE_S:
            raise SystemExit(f"{name} does not stay, see above")


async def stop(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()


async def accepts_connections(port: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def main(port: int, prefix: str, workers: int) -> None:
    told_to_stop = asyncio.Event()
    for how in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(how, told_to_stop.set)
    server = [sys.executable, "-m", "uvicorn", "asgi_ipc.interface:application"]
    server += ["--port", str(port), "--ws", "websockets-sansio"]
    server += ["--log-level", "warning", "--timeout-graceful-shutdown", "2"]
    commands = {"server": server}
    for number in range(1, workers + 1):
        commands[f"worker {number}"] = [sys.executable, WORKER, str(number), "--prefix", prefix]
    running = [
        asyncio.create_task(keep_running(name, command, {"ASGI_IPC_PREFIX": prefix}))
        for name, command in commands.items()
    ]
    try:
        await accepts_connections(port)
        print(f"open http://127.0.0.1:{port}/ (Ctrl-C stops it)", flush=True)
        await told_to_stop.wait()
    finally:
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        AsyncIPCChannelLayer(prefix).unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="run the echo example")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--prefix", default="http-echo", help="of the shared memory")
    parser.add_argument("--workers", type=int, default=2)
    asyncio.run(main(**vars(parser.parse_args())))
