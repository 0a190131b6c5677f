"""A worker process for these tests: plain ``receive_many`` over the blocking layer.

What it does with a request is said by the path. ``/raw`` sends exactly the messages that the
body lists (msgpack), so that tests can have a worker say anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from array import array
from typing import Any
from urllib.parse import parse_qsl

import msgpack

from asgi_ipc import ChannelFull, IPCChannelLayer

CHANNELS = (
    "http.request",
    "http.disconnect",
    "websocket.connect",
    "websocket.receive",
    "websocket.disconnect",
)
GROUP = "everybody"


def pattern(count: int) -> bytes:
    """Bytes that show it when a piece of them is missing."""
    numbers = array("I", range(count // 4 + 1))
    return numbers.tobytes()[:count]


class Answering:
    """One worker."""

    def __init__(self, layer: IPCChannelLayer) -> None:
        self.layer = layer
        self.events: list[Any] = []
        self.held: list[str] = []

    def run(self) -> None:
        """Handle messages for ever."""
        while True:
            channel, message = self.layer.receive_many(CHANNELS, block=True)
            if message is None:
                continue
            if channel == "http.request":
                self.on_request(message)
            elif channel == "websocket.connect":
                self.on_connect(message)
            elif channel == "websocket.receive":
                self.on_receive(message)
            else:
                self.events.append([channel, message])

    def send(self, channel: str, message: dict[str, Any]) -> int:
        """Send as Channels 1 does: again and again while there is no room; how often there was."""
        times_full = 0
        while True:
            try:
                self.layer.send(channel, message)
                return times_full
            except ChannelFull:
                times_full += 1
                time.sleep(0.005)

    # -- HTTP ----------------------------------------------------------------------------

    def on_request(self, message: dict[str, Any]) -> None:
        """Do what the path says."""
        path = message["path"]
        query = dict(parse_qsl(message["query_string"].decode()))
        reply = message["reply_channel"]
        if path == "/raw":
            for answer in msgpack.unpackb(message["body"], strict_map_key=False):
                self.send(reply, answer)
        elif path == "/bytes":
            content = pattern(int(query["count"]))
            self.send(reply, {"status": 200, "content": content})
        elif path == "/stream":
            self.stream(reply, int(query["count"]), int(query["size"]))
        elif path == "/never":
            pass
        elif path == "/hold":
            self.held.append(reply)
        elif path == "/release":
            for channel in self.held:
                self.send(channel, {"status": 200, "content": b"held"})
            self.json(reply, len(self.held))
            self.held.clear()
        elif path == "/events":
            self.json(reply, self.events)
            self.events.clear()
        elif path == "/dies":
            self.send(reply, {"status": 200, "content": b"begun", "more_content": True})
            os._exit(0)
        elif path == "/ignores-body":
            self.send(reply, {"status": 200, "content": b"no need"})
        else:
            self.facts(message)

    def stream(self, reply: str, count: int, size: int) -> None:
        """Answer with many messages, as fast as they are taken."""
        whole = pattern(count * size)
        message: dict[str, Any] = {"status": 200, "headers": []}
        times_full = 0
        for number in range(count):
            message["content"] = whole[number * size : (number + 1) * size]
            message["more_content"] = True
            times_full += self.send(reply, message)
            message = {}
        self.send(reply, {"content": b"", "more_content": False})
        self.events.append(["streamed", {"reply_channel": reply, "full": times_full}])

    def facts(self, message: dict[str, Any]) -> None:
        """Answer with what arrived."""
        body, chunks = message.pop("body"), []
        channel = message.get("body_channel")
        while channel is not None:
            _, chunk = self.layer.receive_many([channel], block=True)
            if chunk is not None:
                chunks.append(len(chunk.get("content", b"")))
                body += chunk.get("content", b"")
                if chunk.get("closed"):
                    self.events.append(["closed", {"reply_channel": message["reply_channel"]}])
                    return
                if not chunk.get("more_content"):
                    break
        facts = {
            **message,
            "body_bytes": len(body),
            "body_md5": hashlib.md5(body).hexdigest(),
            "chunks": chunks,
        }
        self.json(message["reply_channel"], facts)

    def json(self, reply: str, value: Any) -> None:
        """Answer with a value."""
        content = json.dumps(value, default=lambda part: part.decode("latin-1")).encode()
        headers = [[b"Content-Type", b"application/json"], [b"X-Pid", b"%d" % os.getpid()]]
        self.send(reply, {"status": 200, "headers": headers, "content": content})

    # -- websockets ----------------------------------------------------------------------

    def on_connect(self, message: dict[str, Any]) -> None:
        """Accept, or do what the path says."""
        reply, path = message["reply_channel"], message["path"]
        self.events.append(["websocket.connect", message])
        if path == "/raw":
            for answer in msgpack.unpackb(bytes.fromhex(message["query_string"].decode())):
                self.send(reply, answer)
        elif path != "/silent":
            self.send(reply, {"accept": True})
            if path == "/group":
                self.layer.group_add(GROUP, reply)
                self.send(reply, {"text": "joined"})

    def on_receive(self, message: dict[str, Any]) -> None:
        """Echo, or do what the path says."""
        reply, path = message["reply_channel"], message["path"]
        if path == "/raw":
            for answer in msgpack.unpackb(message["bytes"], strict_map_key=False):
                self.send(reply, answer)
        elif path == "/group":
            self.layer.send_group(GROUP, {"text": message["text"]})
        elif path == "/events":
            self.events.append(["websocket.receive", message])
        elif path == "/flood":
            for _ in range(int(message["text"])):
                self.send(reply, {"bytes": bytes(1 << 20)})
        else:
            kind = "text" if message.get("text") is not None else "bytes"
            self.send(reply, {kind: message[kind]})


def main(prefix: str) -> None:
    """Answer until killed."""
    layer = IPCChannelLayer(prefix=prefix)
    layer.receive([])  # attaches
    print("ready", flush=True)
    Answering(layer).run()


if __name__ == "__main__":
    main(sys.argv[1])
