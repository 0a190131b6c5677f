# mypy: ignore-errors
# (runs in the Channels 1 environment, whose packages the type checker does not see)
"""A worker's signal handler raises SystemExit, at any moment of a blocking receive.

    signals.py [SECONDS]

A child keeps sending; the parent receives, interrupted by a timer over and over. Out of receive
comes a message, nothing, or what the handler raised: in time, and with the layer fit for use.
"""

import collections
import faulthandler
import gc
import os
import random
import signal
import sys
import time

import asgi_ipc


class Interrupted(SystemExit):
    """What the handler raises."""


def interrupt(number, frame):
    """Do as the worker of Channels does."""
    raise Interrupted


def send_all_the_time(layer, seed, parent):
    """Send numbered messages, with pauses as short as a receive takes."""
    pauses = random.Random(seed)
    number = 0
    while os.getppid() == parent:
        try:
            layer.send("signals", {"number": number})
            number += 1
        except layer.ChannelFull:
            pass
        time.sleep(pauses.random() * 0.0004)


def receive_numbered(layer, seen, last):
    """Receive one message; return its number. There is always one, or there will be soon."""
    channel, message = layer.receive_many(["signals"], block=True)
    if channel is None:
        raise AssertionError(f"nothing came in {layer.block_timeout} s, after {seen}")
    if message["number"] <= last:
        raise AssertionError(f"{message} after {last}, after {seen}")
    seen["received"] += 1
    return message["number"]


def receive_interrupted(layer, seed, seconds):
    """Receive while a timer goes off, then undisturbed; return what came out, counted."""
    moments = random.Random(seed)
    seen = collections.Counter()
    last = -1
    signal.signal(signal.SIGALRM, interrupt)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, moments.random() * 0.0012 + 1e-6)
                for _ in range(2):
                    last = receive_numbered(layer, seen, last)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            seen["interrupted"] += 1
        for _ in range(3):
            last = receive_numbered(layer, seen, last)
    return seen


def main():
    """Run both processes; return the exit status."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    seed = random.randrange(2**32)
    print(f"seed {seed}", flush=True)
    # A receive that does not come back ends here, with the place where it is.
    faulthandler.dump_traceback_later(seconds + 20, exit=True)
    layer = asgi_ipc.IPCChannelLayer(prefix=os.environ["CHANNELS1_SITE_PREFIX"])
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            send_all_the_time(layer, seed, parent)
        finally:
            os._exit(0)
    try:
        receive_interrupted(layer, seed, 0.2)
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        seen = receive_interrupted(layer, seed, seconds)
        gc.collect()
        after = len(os.listdir("/proc/self/fd"))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(seen, f"{before} descriptors before, {after} after")
    while layer.receive(["signals"])[0]:
        pass
    layer.send("signals", {"number": -1})
    if layer.receive_many(["signals"], block=True) != ("signals", {"number": -1}):
        raise AssertionError("the layer does not work any more")
    # What is interrupted while it opens a descriptor may lose that one, but no more.
    if after > before + 8 + seen["interrupted"] // 50 or not seen["interrupted"]:
        raise AssertionError("see above")


if __name__ == "__main__":
    main()
