"""A worker for ``tcp_server.py``: answers each line with the line in capitals.

Stop it while clients are connected, start it again: no connection is lost, and lines sent
meanwhile are answered when it is back.
"""

import argparse
import os

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc.worker import Message, Worker

parser = argparse.ArgumentParser(description="a worker for tcp_server.py")
parser.add_argument("--prefix", default="tcp-server", help="of the server")
worker = Worker(AsyncIPCChannelLayer(prefix=parser.parse_args().prefix))


@worker.on("line")
async def line(message: Message) -> None:
    await message.reply({"text": f"{message['text'].upper()} (worker {os.getpid()})"})


if __name__ == "__main__":
    print("waiting for lines; Ctrl-C stops it", flush=True)
    worker.run()
