"""What ``gunicorn --preload`` and Celery do before they fork: everything, when imported."""

import asyncio

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer


def use_the_layer():
    """Send, join and wait in the process that will be the parent of others."""
    layer = get_channel_layer()
    layer.sync.receive("nothing", 0.001)

    async def wait_for_oneself():
        name = await layer.new_channel()
        await layer.group_add("parents", name)
        receive = asyncio.create_task(layer.receive(name))
        await asyncio.sleep(0)
        await layer.group_send("parents", {"type": "warm"})
        await receive
        await layer.group_discard("parents", name)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        async_to_sync(wait_for_oneself)()
    # else: a server that imports the application in its loop, and forks no more
