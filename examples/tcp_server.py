"""An interface server in 40 lines: a line protocol over TCP, answered by workers.

python examples/tcp_server.py       (first terminal)
python examples/tcp_worker.py       (as many as you like, stopped and started at will)
nc 127.0.0.1 9000                   (as many as you like: one line there, one line back)
"""

import argparse
import asyncio
import functools
from asyncio import StreamReader, StreamWriter

from asgi_ipc import AsyncIPCChannelLayer as Layer
from asgi_ipc import ChannelFull


async def connection(layer: Layer, reader: StreamReader, writer: StreamWriter) -> None:
    """Serve a client: its lines go to "line", and what comes to its own channel goes to it."""
    name = await layer.new_channel("line.reply")  # line.reply.<this process>!<this client>
    replies = asyncio.create_task(pass_on(layer, name, writer))
    try:
        while line := await reader.readline():
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            while not await sent(layer, "line", {"reply_channel": name, "text": text}):
                await asyncio.sleep(0.01)  # the workers are behind: this client has to wait
    except (ConnectionError, ValueError):
        pass  # it has gone, or its line was longer than 64 KiB
    finally:
        replies.cancel()
        writer.close()


async def pass_on(layer: Layer, name: str, writer: StreamWriter) -> None:
    try:
        while True:
            _, message = await layer.receive_async([name])
            assert message is not None  # no block_timeout: it waits for ever
            writer.write(message["text"].encode() + b"\n")
            await writer.drain()  # a slow client fills its own channel and nobody else's
    except ConnectionError:
        pass  # it has gone: connection() notices, too


async def sent(layer: Layer, channel: str, message: dict[str, str]) -> bool:
    try:
        await layer.send(channel, message)
    except ChannelFull:
        return False
    return True


async def main(prefix: str, port: int) -> None:
    async with Layer(prefix=prefix) as layer:
        serve = functools.partial(connection, layer)
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        print("listening on port", server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a line protocol over TCP on a channel layer")
    parser.add_argument("--prefix", default="tcp-server", help="the workers give the same")
    parser.add_argument("--port", type=int, default=9000)
    try:
        asyncio.run(main(**vars(parser.parse_args())))
    except KeyboardInterrupt:
        pass  # Ctrl-C is how it is meant to stop
