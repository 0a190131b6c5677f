"""A broadcast to a group: every listener, in whatever process, hears what is said.

python examples/broadcast.py listen --name ann      (one terminal or several)
python examples/broadcast.py say "dinner is ready"  (another one)
"""

from __future__ import annotations

import argparse
import asyncio

from asgi_ipc import AsyncIPCChannelLayer

GROUP = "kitchen"


async def listen(prefix: str, name: str) -> None:
    """Join the group and print what is said in it until Ctrl-C."""
    async with AsyncIPCChannelLayer(prefix=prefix) as layer:
        channel = await layer.new_channel("listener")
        await layer.group_add(GROUP, channel)
        print(f"{name}: listening; Ctrl-C stops it", flush=True)
        try:
            while True:
                message = await layer.receive(channel)
                print(f"{name}: heard {message['text']!r}", flush=True)
        finally:
            await layer.group_discard(GROUP, channel)
            print(f"{name}: stopped", flush=True)


async def say(prefix: str, text: str) -> None:
    """Send one message to everybody in the group."""
    async with AsyncIPCChannelLayer(prefix=prefix) as layer:
        listeners = len(await layer.group_channels(GROUP))
        await layer.group_send(GROUP, {"text": text})
        print(f"said {text!r} to {listeners} listeners", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prefix", default="broadcast", help="all sides share it")
    roles = parser.add_subparsers(dest="role", required=True)
    listener = roles.add_parser("listen", help="print what is said")
    listener.add_argument("--name", default="listener")
    speaker = roles.add_parser("say", help="say something to all listeners")
    speaker.add_argument("text")
    options = parser.parse_args()
    try:
        if options.role == "listen":
            asyncio.run(listen(options.prefix, options.name))
        else:
            asyncio.run(say(options.prefix, options.text))
    except KeyboardInterrupt:
        pass  # Ctrl-C is how it is meant to stop


if __name__ == "__main__":
    main()
