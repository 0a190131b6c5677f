"""Synchronous views, as most are."""

import os
from contextlib import suppress

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.contrib.auth.models import User
from django.http import HttpResponse, JsonResponse

PAGE = """<!doctype html><title>orders</title>
<p id="users">%s</p><p id="state">connecting</p><ol id="orders"></ol>
<script>
const socket = new WebSocket(`ws://${location.host}/feed/`);
socket.onmessage = ({data}) => {
  const {pid, said} = JSON.parse(data);
  if (pid) { document.getElementById("state").textContent = "connected"; return; }
  const item = document.createElement("li");
  item.textContent = said;
  document.getElementById("orders").append(item);
};
</script>"""


def page(_request):
    """What a browser shows."""
    return HttpResponse(PAGE % ", ".join(User.objects.values_list("username", flat=True)))


def announce(_request, text):
    """Say it twice: with the blocking twin and through an event loop."""
    layer = get_channel_layer()
    layer.sync.group_send("orders", {"type": "order", "said": f"{text} blocking"})
    async_to_sync(layer.group_send)("orders", {"type": "order", "said": f"{text} in a loop"})
    return JsonResponse({"pid": os.getpid()})


def load(_request, count):
    """Use the layer that often, each time in a new event loop; what did it leave behind?"""
    return JsonResponse({"pid": os.getpid(), "left": left_by(count)})


def left_by(count):
    """How many descriptors are open after that many uses that were not after the first."""
    layer = get_channel_layer()
    channel = async_to_sync(layer.new_channel)()

    async def receive(n):
        await layer.send(channel, {"n": n})
        return await layer.receive(channel)

    before = None
    for n in range(count):
        if async_to_sync(receive)(n) != {"n": n}:
            raise AssertionError(n)
        before = before or descriptors()
    return descriptors() - before


def descriptors():
    """How many there are but for inotify: a loop that waits here may just get its own."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one of this listing
            count += os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:inotify"
    return count
