"""An echo between two processes, blocking: the interface of Channels 1.

python examples/echo_sync.py server      (first terminal)
python examples/echo_sync.py client      (second terminal)
"""

from __future__ import annotations

import argparse
import time

from asgi_ipc import IPCChannelLayer

ECHO = "echo"


def server(layer: IPCChannelLayer) -> None:
    """Answer every message on its reply channel until Ctrl-C."""
    print("server: waiting for messages; Ctrl-C stops it", flush=True)
    answered = 0
    try:
        while True:
            _, message = layer.receive([ECHO], block=True)
            if message is not None:  # None: block_timeout is over, wait on
                layer.send(message["reply_channel"], {"text": message["text"]})
                answered += 1
    finally:
        print(f"server: stopped after {answered} echoes", flush=True)


def client(layer: IPCChannelLayer, count: int) -> None:
    """Send ``count`` messages, one after the other."""
    reply_channel = layer.new_channel("echo.reply?")
    started = time.perf_counter()
    for number in range(1, count + 1):
        text = f"hello {number}"
        layer.send(ECHO, {"reply_channel": reply_channel, "text": text})
        answer = None
        while answer is None:
            _, answer = layer.receive([reply_channel], block=True)
        assert answer["text"] == text
        if number <= 3 or number == count:
            print(f"client: {text!r} came back", flush=True)
        elif number == 4:
            print("client: ...", flush=True)
    each_us = (time.perf_counter() - started) / count * 1e6
    print(f"client: {count} echoes, {each_us:.0f} µs each", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("--prefix", default="echo-sync", help="the two sides share it")
    parser.add_argument("--count", type=int, default=1000, help="echoes to ask for")
    options = parser.parse_args()
    layer = IPCChannelLayer(prefix=options.prefix)
    try:
        if options.role == "server":
            server(layer)
        else:
            client(layer, options.count)
    except KeyboardInterrupt:
        pass  # Ctrl-C is how it is meant to stop
    finally:
        layer.close()


if __name__ == "__main__":
    main()
