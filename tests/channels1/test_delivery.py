"""What the default settings can carry: nothing is dropped and nobody is refused."""

import asyncio
from collections import Counter

import httpx
import pytest
from websockets.asyncio.client import connect

from .running_site import DEADLINE_S, Site

MEMBERS = 30
BROADCASTS = 100  # at once: as many as a channel holds by default


async def member(url: str, joined: asyncio.Barrier) -> list[str]:
    """Join a room and return the broadcasts it got."""
    async with connect(url, open_timeout=DEADLINE_S) as socket:
        assert await socket.recv() == "joined"
        await joined.wait()
        return [str(await socket.recv()) for _ in range(BROADCASTS)]


@pytest.mark.parametrize("posts", [BROADCASTS, 1], ids=["one-per-request", "one-burst"])
def test_broadcasts_reach_everybody(site: Site, posts: int) -> None:
    """30 websockets get each of 100 broadcasts, whether they come one by one or at once."""

    async def scenario() -> list[list[str]]:
        url = f"{site.ws_url}/rooms/delivery-{posts}"
        joined = asyncio.Barrier(MEMBERS + 1)
        async with asyncio.TaskGroup() as group:
            members = [group.create_task(member(url, joined)) for _ in range(MEMBERS)]
            await joined.wait()
            async with httpx.AsyncClient(base_url=site.url, timeout=DEADLINE_S) as client:
                for number in range(posts):
                    data = {"text": str(number), "times": str(BROADCASTS // posts)}
                    answer = await client.post(f"/rooms/delivery-{posts}", data=data)
                    assert answer.status_code == 204
        return [task.result() for task in members]

    received = asyncio.run(asyncio.wait_for(scenario(), 2 * DEADLINE_S))
    expected = [str(number) for number in range(posts) for _ in range(BROADCASTS // posts)]
    assert [sorted(texts, key=int) for texts in received] == [expected] * MEMBERS


def test_nobody_is_refused(site: Site) -> None:
    """400 requests of 16 concurrent clients are all answered, none with a 503."""

    async def client() -> list[int]:
        async with httpx.AsyncClient(base_url=site.url, timeout=DEADLINE_S) as session:
            return [(await session.get("/")).status_code for _ in range(25)]

    async def scenario() -> Counter[int]:
        statuses = await asyncio.gather(*(client() for _ in range(16)))
        return Counter(status for each in statuses for status in each)

    assert asyncio.run(scenario()) == {200: 400}
