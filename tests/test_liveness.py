"""Silence is not death: living processes are kept, whatever keeps them from answering.

Ordinary users where root is exempt from a limit: their processes give root's rights up.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer
from asgi_ipc._shm import layout as L
from asgi_ipc._wake import bell
from asgi_ipc._wake import port as port_module
from asgi_ipc._wake.bell import bells_directory

from .conftest import ONLY_RINGS
from .stepping import SteppingLoop, drive
from .test_inotify import has_parked, inotifies, is_parked, no_descriptor_left, start_settled

if TYPE_CHECKING:
    from .conftest import Child, Clock

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

SOON_S = 15.0

ORDINARY = """
import concurrent.futures.thread, ctypes, resource  # what is loaded late may be root's alone
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""
BROADCASTS = (
    ORDINARY
    + """
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def main():
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    async def receive():
        while True:
            say((await layer.receive(channel))["n"])
    receiving = asyncio.create_task(receive())
    await asyncio.sleep(0)
    say("ready")
    n = 0
    while await asyncio.to_thread(sys.stdin.readline):
        await layer.group_send("g", {"n": await layer.group_count("g")})
asyncio.run(main())
"""
)


@pytest.mark.parametrize(("limit", "count"), [(32, 8), (64, 9)])
def test_few_descriptors_lose_nobody(start: Start, prefix: str, limit: int, count: int) -> None:
    """Processes of an ordinary user that ring each other once: all get every broadcast of each."""
    children = []
    for _ in range(count):
        children.append(start(BROADCASTS, str(limit)))
        children[-1].expect("ready")
    for _ in range(3):
        for child in children:
            for one in children:
                one.wait_for_state("S")
            child.tell()
            assert [one.line() for one in children] == [str(count)] * count


# -- the dead ------------------------------------------------------------------------------

JOINS = """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def main():
    for name in ("h!a", "h!b"):
        await layer.group_add("g", name)
    await layer.group_add("other", "h!a")
    receiving = asyncio.create_task(layer.receive("h!a"))
    await asyncio.sleep(0)
    say("waits")
    if len(sys.argv) > 2:
        await asyncio.to_thread(sys.stdin.readline)
        receiving.cancel()
    else:
        await receiving
asyncio.run(main())
say("its loop has ended")
sys.stdin.readline()
"""


@pytest.mark.parametrize("ask", ["group_count", "group_channels", "group_send"])
def test_members_of_a_killed_process_are_gone_at_once(
    start: Start, make_layer: MakeLayer, ask: str
) -> None:
    """For the first who asks, whatever it asks; those of other groups go with them."""
    layer = make_layer()
    child = start(ONLY_RINGS + JOINS)
    child.expect("waits")
    drive(layer.group_add("g", "normal"))
    assert drive(layer.group_count("g")) == 3
    child.kill()
    if ask == "group_send":
        drive(layer.group_send("g", {}))
    elif ask == "group_count":
        assert drive(layer.group_count("g")) == 1
    assert drive(layer.group_channels("g")) == ["normal"]
    assert _members(layer, "other") == 0
    assert not _token_of(layer, child.pid)


def _members(layer: AsyncIPCChannelLayer, group: str) -> int:
    """What the segment says, without asking who lives."""
    return len(layer._site.groups.channels(group))


def test_members_of_a_killed_process_go_without_being_asked_for(
    start: Start, make_layer: MakeLayer
) -> None:
    """Whoever waits is told by the kernel, and drops them."""
    layer = make_layer()
    child = start(ONLY_RINGS + JOINS)
    child.expect("waits")
    start_settled(
        start,
        "layer = AsyncIPCChannelLayer(PREFIX, **SIZES)\nsay_when_settled(layer)\n"
        'asyncio.run(layer.receive("c"))',
    )
    child.kill()
    give_up = time.monotonic() + SOON_S
    while _members(layer, "g"):
        assert time.monotonic() < give_up
        os.sched_yield()


def test_members_outlive_a_loop_but_not_its_process(start: Start, make_layer: MakeLayer) -> None:
    """Another loop of the process may receive for them."""
    layer = make_layer()
    child = start(JOINS, "ends")
    child.expect("waits")
    child.tell()
    child.expect("its loop has ended")
    assert drive(layer.group_count("g")) == 2
    drive(layer.group_send("g", {}))
    assert drive(layer.group_count("g")) == 2
    child.kill()
    assert drive(layer.group_count("g")) == 0


@pytest.mark.parametrize("daemonises", [False, True])
def test_a_restarted_owner_that_joins_before_it_receives_stays(
    start: Start, make_layer: MakeLayer, daemonises: bool
) -> None:
    """What its predecessor of the same name had joined is dropped, what it joins itself is not.

    Nor if it has lost its descriptors meanwhile, and cannot tell at once who lives.
    """
    layer = make_layer()
    drive(layer.receive_async(["k!x"], block=False))
    child = start(ONLY_RINGS + JOINS)
    child.expect("waits")
    child.kill()
    again = start(
        """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
if len(sys.argv) > 2:
    layer.sync.group_add("another", "k!x")  # it asks whether k!'s owner lives
    os.closerange(3, 65536)
async def main():
    for name in ("h!b", "h!c"):
        await layer.group_add("g", name)
    say("joined")
    await asyncio.to_thread(sys.stdin.readline)
    for name in ("h!b", "h!c"):
        say((await layer.receive(name))["n"])
asyncio.run(main())
""",
        *(("daemonises",) if daemonises else ()),
    )
    again.expect("joined")
    for n in range(2):
        drive(layer.group_send("g", {"n": n}))
        assert sorted(drive(layer.group_channels("g"))) == ["h!b", "h!c"]
    again.tell()
    assert [again.line(), again.line()] == ["0", "0"]


def test_a_home_is_not_forgotten_before_its_dead_owners_members_are_dropped(
    start: Start, make_layer: MakeLayer, clock: Clock
) -> None:
    """The hand of the clock finds the record idle, and the members go."""
    layer = make_layer()
    child = start(ONLY_RINGS + JOINS)
    child.expect("waits")
    child.kill()
    layer._site.messages.slots.reap_all()
    layer._site.messages.slots.dead_homes.clear()  # as if who did it was killed now
    for _ in range(2):
        for _ in range(2000):
            layer.sync.send("tick", {})
            layer.sync.receive("tick", 0)
        clock.advance(61)
    assert _members(layer, "g") == 0


# -- a loop that ends without a word -------------------------------------------------------


async def test_a_second_loop_closed_abruptly_costs_no_membership(make_layer: MakeLayer) -> None:
    """It waited below the same home; the first loop goes on to receive for it."""
    layer, sender = make_layer(), make_layer()
    waiting = asyncio.create_task(layer.receive("h!a"))
    await asyncio.sleep(0)
    await layer.group_add("g", "h!a")
    left: list[Any] = []

    def second_loop() -> None:
        loop = asyncio.new_event_loop()

        async def body() -> None:
            left.append(loop.create_task(layer.receive_async(["h!b", "n"])))
            await asyncio.sleep(0)

        loop.run_until_complete(body())
        loop.close()

    await asyncio.to_thread(second_loop)
    for one in (layer, sender):
        for _ in range(2):
            await one.send("n", {})
    await sender.group_send("g", {"n": 1})
    assert await asyncio.wait_for(waiting, SOON_S) == {"n": 1}
    assert await sender.group_channels("g") == ["h!a"]
    left[0]._log_destroy_pending = False
    left[0].get_coro().close()


@pytest.mark.parametrize("why", ["its own sender", "another process"])
def test_a_dropped_loop_keeps_no_message_from_another(
    start: Start, make_layer: MakeLayer, why: str
) -> None:
    """A loop of a living process that was closed with a receive pending: another is rung.

    By others once its process has noticed, by whatever it does next.
    """
    layer = make_layer()
    child = start(
        ONLY_RINGS
        + """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
loop = asyncio.new_event_loop()
task = loop.create_task(layer.receive("c"))
loop.run_until_complete(asyncio.sleep(0))
say("waits")
for line in sys.stdin:
    if "close" in line:
        loop.close()
        if "go on" in line:
            layer._site.watch_at_ns = 0  # a second has gone by
            layer.sync.send("other", {})
        say("closed")
    else:
        layer.sync.send("c", {"n": int(line)})
"""
    )
    child.expect("waits")
    heir = start(
        ONLY_RINGS
        + """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def main():
    while True:
        say((await layer.receive("c"))["n"])
asyncio.run(main())
"""
    )
    while not has_parked(layer, heir.pid):
        os.sched_yield()
    child.tell("close and go on" if why == "another process" else "close")
    child.expect("closed")
    for number in range(4):
        if why == "another process":
            drive(layer.send("c", {"n": number}))
        else:
            child.tell(str(number))
        heir.expect(str(number), SOON_S)


# -- descriptors ---------------------------------------------------------------------------


def test_a_door_that_cannot_be_answered_is_left_alone_for_a_while(make_layer: MakeLayer) -> None:
    """No descriptor is left to let the guest in: the loop looks, and does not spin."""
    layer, other = make_layer(), make_layer()
    loop = SteppingLoop()
    tasks = [loop.create_task(layer.receive(name)) for name in ("c", "d")]
    loop.settle()
    drive(other.send("c", {"n": 1}))
    with no_descriptor_left():
        loop.settle()  # comes to an end
        assert tasks[0].result() == {"n": 1}
    port = layer._site.ports()[0]
    port._watch_door_again()
    loop.settle()
    drive(other.send("d", {"n": 2}))
    loop.settle()
    assert tasks[1].result() == {"n": 2}
    _end(loop)


def _end(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def test_a_reader_that_cannot_be_added_takes_nothing_along(make_layer: MakeLayer) -> None:
    """As often as there are slots: the next loop gets one."""

    class Refusing(SteppingLoop):
        def add_reader(self, fd: Any, callback: Any, *args: Any) -> Any:  # type: ignore[override]
            if hasattr(fd, "getsockname"):
                raise OSError(28, "no space left on device")
            return super().add_reader(fd, callback, *args)

    layer = make_layer()
    loop = Refusing()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(L.SLOT_COUNT + 1):
        task = loop.create_task(layer.receive("c"))
        loop.settle()
        with pytest.raises(OSError, match="no space"):
            task.result()
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the witness file
    assert os.listdir(bells_directory(layer.prefix)) == ["alive"]
    _end(loop)
    other = SteppingLoop()
    receive = other.create_task(layer.receive("c"))
    other.settle()
    drive(layer.send("c", {}))
    other.settle()
    assert receive.done()
    _end(other)


def test_bells_are_closed_where_nobody_rings(
    make_layer: MakeLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both hold the guard: a ring never writes to a number that is another file's by then."""
    layer = make_layer()
    guard: Any = layer._site.messages.segment.guard
    held: list[tuple[str, bool]] = []
    close, ring = port_module._Fittings.close, bell.ring

    def closed(fittings: Any, **options: Any) -> None:
        held.append(("close", guard._is_owned()))
        close(fittings, **options)

    def rung(fd: int) -> bool:
        held.append(("ring", guard._is_owned()))
        return ring(fd)

    monkeypatch.setattr(port_module._Fittings, "close", closed)
    monkeypatch.setattr(port_module, "ring", rung)
    loop = SteppingLoop()
    task = loop.create_task(layer.receive("c"))
    loop.settle()
    drive(layer.send("c", {}))
    loop.settle()
    assert task.done()
    layer.close_now()
    _end(loop)
    assert ("ring", True) in held and ("close", True) in held
    assert all(is_held for _, is_held in held)


# -- the lock ------------------------------------------------------------------------------


def test_a_stopped_lock_holder_costs_a_rung_loop_little(make_layer: MakeLayer) -> None:
    """It tries again after 1 ms, and then ever more rarely, up to ten times a second."""
    layer, other = make_layer(), make_layer()
    loop = SteppingLoop()
    for name in ("c", "d"):
        loop.create_task(layer.receive(name))
    loop.settle()
    delays: list[float] = []
    call_later = loop.call_later

    def noted(delay: float, callback: Any, *args: Any, **options: Any) -> Any:
        if callback == port._look:
            delays.append(delay)
        return call_later(delay, callback, *args, **options)

    port = layer._site.ports()[0]
    loop.call_later = noted  # type: ignore[assignment, method-assign]
    store = other._site.messages
    with store.segment.guard:
        fcntl.flock(store.segment.lock_fd, fcntl.LOCK_EX)
        loop.call_soon(port._look)
        while len(delays) < 9:
            loop.step()
        fcntl.flock(store.segment.lock_fd, fcntl.LOCK_UN)
    assert delays[:3] == [0.001, 0.002, 0.004] and delays[-1] == 0.1
    loop.settle()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.settle()
    _end(loop)


# -- what happens to the witness -----------------------------------------------------------


def test_who_was_taken_for_dead_begins_anew(start: Start, make_layer: MakeLayer) -> None:
    """All its descriptors above 2 that say that it lives were closed: it notices when it looks."""
    layer = make_layer()
    child = start(
        """
import asgi_ipc._wake.port, logging
logging.basicConfig(stream=sys.stdout, format="log: %(message)s", level=logging.ERROR)
asgi_ipc._wake.port.SAFETY_S = asgi_ipc._wake.port.SETTLED_S = 0.05
asgi_ipc._wake.port._RARELY = 1
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
async def main():
    waiting = asyncio.create_task(layer.receive("c"))
    await asyncio.sleep(0)
    say("waits")
    sys.stdin.readline()  # its loop stands still meanwhile
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/alive"):
                os.close(int(fd))
        except OSError:
            pass
    say("closed")
    sys.stdin.readline()
    say((await waiting)["n"])
asyncio.run(main())
"""
    )
    child.expect("waits")
    slot_before = _token_of(layer, child.pid)
    assert slot_before
    child.tell()
    child.expect("closed")
    layer._site.messages.slots.reap_all()
    assert not _token_of(layer, child.pid)
    child.tell()
    child.expect("log: ")
    give_up = time.monotonic() + SOON_S
    while not has_parked(layer, child.pid):
        assert time.monotonic() < give_up
        os.sched_yield()
    drive(layer.send("c", {"n": 1}))
    child.expect("1", SOON_S)


def _token_of(layer: AsyncIPCChannelLayer, pid: int) -> int:
    words = layer._site.messages.segment.words
    for slot in range(L.SLOT_COUNT):
        base = L.SLOTS + L.SLOT_WORDS * slot
        if words[base + L.SLOT_TOKEN] and words[base + L.SLOT_PID] == pid:
            return int(words[base + L.SLOT_TOKEN])
    return 0


@pytest.mark.parametrize("what", ["its door", "the witness file", "everything", "the segment"])
def test_who_makes_new_doors_keeps_its_memberships(
    start: Start, make_layer: MakeLayer, prefix: str, what: str
) -> None:
    """Whatever was removed, it takes no part of its life along; killed then, it is dead."""
    layer = make_layer()
    child = start(
        """
import asgi_ipc._wake.port
asgi_ipc._wake.port.SAFETY_S = asgi_ipc._wake.port.SETTLED_S = 0.05
asgi_ipc._wake.port._RARELY = 1
"""
        + JOINS
    )
    child.expect("waits")
    assert drive(layer.group_count("g")) == 2
    directory = Path(bells_directory(prefix))
    before = set(os.listdir(directory))
    token = _token_of(layer, child.pid)
    for name in before:
        if what in ("everything", "the witness file" if name == "alive" else "its door"):
            (directory / name).unlink()
    if what == "the segment":
        os.unlink(f"/dev/shm/{prefix}-messages")
    give_up = time.monotonic() + SOON_S
    while _token_of(layer, child.pid) in (0, token):
        assert drive(layer.group_count("g")) == 2
        layer._site.watch()
        layer._site.messages.slots.reap_all()
        assert time.monotonic() < give_up
    while not _is_parked_on(layer, child.pid, "h!"):
        assert time.monotonic() < give_up
        os.sched_yield()
    assert drive(layer.group_count("g")) == 2
    child.kill()
    assert drive(layer.group_count("g")) == 0


def _is_parked_on(layer: AsyncIPCChannelLayer, pid: int, home: str) -> bool:
    record = layer._site.messages.segment.transact(layer._site.messages.records.find, home)
    return bool(record) and is_parked(layer, pid, home)


# -- inotify -------------------------------------------------------------------------------


def test_all_loops_of_a_process_share_one_inotify(start: Start, make_layer: MakeLayer) -> None:
    """Whichever of them ends, the others are told."""
    layer = make_layer()
    many = start(
        """
import asgi_ipc._wake.port
asgi_ipc._wake.port.SAFETY_S = 3600.0
asgi_ipc._wake.port.SETTLED_S = 0.05
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
def wait():
    while True:
        say(layer.sync.receive("c")["n"])
for _ in range(4):
    threading.Thread(target=wait, daemon=True).start()
async def main():
    waiting = asyncio.create_task(layer.receive("other"))
    while len(layer._site.ports()) < 5 or any(port._pause_s < 3600 for port in layer._site.ports()):
        await asyncio.sleep(0.01)
    say("settled")
    await asyncio.to_thread(sys.stdin.readline)
    waiting.cancel()
asyncio.run(main())
say("ended")
sys.stdin.readline()
os._exit(0)
"""
    )
    many.expect("settled")
    assert inotifies(many.pid) == 1
    many.tell()
    many.expect("ended")
    victim = start(
        ONLY_RINGS
        + """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
asyncio.run(layer.receive("c"))
"""
    )
    while not has_parked(layer, victim.pid):
        os.sched_yield()
    victim.signal(signal.SIGSTOP)
    victim.wait_for_state("T")
    for number in range(1000):  # who has not parked again yet is left out
        drive(layer.send("c", {"n": number}))
        if not has_parked(layer, victim.pid):
            break
        many.expect(str(number))
    victim.kill()
    many.expect(str(number), SOON_S)
    assert inotifies(many.pid) == 1


@pytest.mark.parametrize("order", ["joins first", "receives first", "finds nothing"])
def test_who_only_polls_owns_its_home(start: Start, make_layer: MakeLayer, order: str) -> None:
    """Its memberships end with it; who polls the home of one that lives takes nothing over."""
    code = f"""
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
name = layer.sync.new_channel()
if {order!r} == "joins first":
    layer.sync.group_add("g", name)
if {order!r} != "finds nothing":
    layer.sync.send(name, {{}})
    assert layer.sync.receive(name, timeout=0) == {{}}
else:
    assert layer.sync.receive(name, timeout=0) is None
layer.sync.group_add("g", name)
say(name)
sys.stdin.readline()
"""
    owner = start(code)
    name = owner.line()
    passer_by = start(
        f"""
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
layer.sync.send({name!r}, {{}})
assert layer.sync.receive({name!r}, timeout=0) == {{}}
assert layer.sync.receive({name!r}, timeout=0) is None
say("done")
sys.stdin.readline()
"""
    )
    passer_by.expect("done")
    layer = make_layer()
    passer_by.kill()
    assert layer.sync.group_channels("g") == [name]
    owner.kill()
    assert layer.sync.group_channels("g") == []


def test_who_polls_again_after_a_close_owns_its_home_again(
    start: Start, make_layer: MakeLayer
) -> None:
    """Closing gave its token back; it takes another one at the next poll."""
    child = start(
        """
layer = AsyncIPCChannelLayer(PREFIX, **SIZES)
name = layer.sync.new_channel()
layer.sync.receive(name, timeout=0.01)
layer.close_now()
layer.sync.receive(name, timeout=0)
layer.sync.group_add("g", name)
say(name)
sys.stdin.readline()
"""
    )
    name = child.line()
    layer = make_layer()
    assert layer.sync.group_channels("g") == [name]
    child.kill()
    assert layer.sync.group_channels("g") == []
