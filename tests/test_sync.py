"""The blocking face: the contract of Channels 1, item by item."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import asgi_ipc
from asgi_ipc import IPCChannelLayer
from asgi_ipc.exceptions import InvalidName, LayerClosed

if TYPE_CHECKING:
    from .conftest import Child

MakeSync = Callable[..., IPCChannelLayer]
Start = Callable[..., "Child"]


@pytest.fixture
def layer(make_sync: MakeSync) -> IPCChannelLayer:
    return make_sync(block_timeout=0.05)


# -- construction and attributes ---------------------------------------------------------


def test_the_options_are_upstreams_in_upstreams_order() -> None:
    """New ones are keyword-only behind them."""
    parameters = list(inspect.signature(IPCChannelLayer).parameters.values())
    positional = [one.name for one in parameters if one.kind is not one.KEYWORD_ONLY]
    assert positional == [
        "prefix",
        "expiry",
        "group_expiry",
        "capacity",
        "channel_capacity",
        "message_memory",
        "group_memory",
    ]
    defaults = {one.name: one.default for one in parameters}
    assert defaults["prefix"] == "asgi"
    assert (defaults["expiry"], defaults["group_expiry"], defaults["capacity"]) == (60, 86400, 100)
    assert defaults["message_memory"] == 100 * 2**20
    assert defaults["group_memory"] == 20 * 2**20


def test_positional_options_work(prefix: str) -> None:
    """As old settings give them."""
    layer = IPCChannelLayer(prefix, 30, 3600, 5, {"big": 9}, 1 << 20, 1 << 20)
    assert (layer.prefix, layer.expiry, layer.group_expiry, layer.capacity) == (prefix, 30, 3600, 5)
    assert layer.get_capacity("big") == 9
    layer.close()


def test_the_dotted_path_of_old_settings_works() -> None:
    """``asgi_ipc.IPCChannelLayer``; and its module is not taken for an in-memory layer."""
    assert asgi_ipc.IPCChannelLayer is IPCChannelLayer
    assert "inmemory" not in IPCChannelLayer.__module__


def test_a_layer_is_true_and_names_its_extensions(layer: IPCChannelLayer) -> None:
    """``if channel_layer:`` and ``"flush" in channel_layer.extensions``."""
    assert layer
    assert {"groups", "flush", "statistics", "async", "asyncio"} <= set(layer.extensions)
    assert ("twisted" in layer.extensions) == _has_twisted()


def _has_twisted() -> bool:
    import importlib.util

    return importlib.util.find_spec("twisted") is not None


def test_the_errors_are_reached_through_the_instance(layer: IPCChannelLayer) -> None:
    """And accept any arguments."""
    for error in (layer.ChannelFull, layer.MessageTooLarge):
        assert issubclass(error, Exception)
        assert error("anything", 3).args == ("anything", 3)


def test_the_helpers_of_the_base_class_are_there(layer: IPCChannelLayer) -> None:
    """What third parties call on an asgiref 1 layer."""
    assert layer.valid_channel_name("a!b")
    assert layer.valid_channel_name("a!", receive=True)
    assert layer.valid_channel_names(["a", "b!"], receive=True)
    assert layer.valid_group_name("a")
    assert layer.match_type_and_length("a")
    assert not layer.match_type_and_length("x" * 100)
    assert layer.non_local_name("a!b") == "a!"
    assert layer.non_local_name("a") == "a"
    assert layer.channel_name_regex.match("a?b")
    assert layer.group_name_regex.match("a")
    assert "alphanumerics" in layer.invalid_name_error.format("Channel")
    assert layer.compile_capacities({"a*": 3})[0][1] == 3
    with pytest.raises(TypeError):
        layer.valid_channel_name("a b")
    with pytest.raises(TypeError):
        layer.valid_channel_name("a!b", receive=True)
    with pytest.raises(TypeError):
        layer.valid_channel_names(["a", "b?"])
    with pytest.raises(TypeError):
        layer.valid_group_name("a!")


# -- send and receive --------------------------------------------------------------------


def test_send_returns_none_and_keeps_nothing(layer: IPCChannelLayer) -> None:
    """The message is neither changed nor aliased."""
    message = {"list": [1]}
    assert layer.send("c", message) is None  # type: ignore[func-returns-value]
    message["list"].append(2)
    channel, got = layer.receive(["c"])
    assert (channel, got) == ("c", {"list": [1]})


@pytest.mark.parametrize("name", ["receive", "receive_many"])
@pytest.mark.parametrize("block", [False, True])
def test_both_receives_return_message_or_nothing(
    layer: IPCChannelLayer, name: str, block: bool
) -> None:
    """A pair in either case; no warning with any call."""
    receive = getattr(layer, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.send("b", {"n": 1})
        assert receive(["a", "b"], block) == ("b", {"n": 1})
        assert receive(["a", "b"], block=block) == (None, None)


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("channels", [[], (), set(), None, iter(())])
def test_receiving_from_nothing_is_nothing(
    layer: IPCChannelLayer, channels: Any, block: bool
) -> None:
    """``--only-channels`` that matches none; in whatever container."""
    assert layer.receive(channels, block=block) == (None, None)


@pytest.mark.parametrize("container", [list, tuple, set, frozenset, iter, dict.fromkeys])
def test_channels_come_in_any_container(
    layer: IPCChannelLayer, container: Callable[[list[str]], Any]
) -> None:
    """A generator too, blocking or not."""
    for block in (False, True):
        layer.send("b", {"n": 1})
        assert layer.receive(container(["a", "b", "a"]), block=block) == ("b", {"n": 1})


def test_a_blocking_receive_is_woken_by_another_process(start: Start, make_sync: MakeSync) -> None:
    """It does not sit out its timeout."""
    layer = make_sync(block_timeout=60.0)
    child = start(
        """
layer = IPCChannelLayer(PREFIX, **SIZES)
channel, message = layer.receive(["ask"], block=True)
layer.send(message["reply"], {"answer": 42})
"""
    )
    layer.send("ask", {"reply": "reply?x"})
    assert layer.receive(["reply?x"], block=True) == ("reply?x", {"answer": 42})
    child.end()


def test_a_specific_home_gives_all_its_messages_in_order(layer: IPCChannelLayer) -> None:
    """``receive(["x!"])`` returns everything under ``x!``, with its full name."""
    sent = [("x!b", 1), ("x!a", 2), ("x!", 3), ("x!b", 4)]
    for name, number in sent:
        layer.send(name, {"n": number})
    got = []
    while (found := layer.receive(["x!"]))[0] is not None:
        channel, message = found
        assert message is not None
        got.append((channel, message["n"]))
    assert got == sent


def test_a_specific_name_is_not_received_from(layer: IPCChannelLayer) -> None:
    """A name to receive from must end at its exclamation mark; a TypeError says so."""
    with pytest.raises(TypeError, match="must end at its '!'"):
        layer.receive(["x!a"])
    for bad in ("a b", "a?", "", "x" * 100, "a\n"):
        with pytest.raises(TypeError):
            layer.receive([bad])
        with pytest.raises(TypeError):
            layer.send(bad, {})


def test_capacity_of_specific_names_counts_on_the_home(make_sync: MakeSync) -> None:
    """Raised when the length reaches the capacity; the first pattern that matches wins."""
    layer = make_sync(capacity=4, channel_capacity={"y!*": 2, "y*": 3})
    for number in range(4):
        layer.send(f"x!{number}", {})
    with pytest.raises(layer.ChannelFull):
        layer.send("x!new", {})
    for number in range(2):
        layer.send(f"y!{number}", {})
    with pytest.raises(layer.ChannelFull):
        layer.send("y!new", {})


def test_a_full_channel_has_room_again_after_a_receive(make_sync: MakeSync) -> None:
    """Nothing is lost by a refusal."""
    layer = make_sync(capacity=2)
    layer.send("c", {"n": 1})
    layer.send("c", {"n": 2})
    with pytest.raises(layer.ChannelFull):
        layer.send("c", {"n": 3})
    assert layer.receive(["c"]) == ("c", {"n": 1})
    layer.send("c", {"n": 3})
    assert [layer.receive(["c"])[1] for _ in range(3)] == [{"n": 2}, {"n": 3}, None]


def test_processes_cannot_overfill_a_channel(start: Start, make_sync: MakeSync) -> None:
    """Four processes that race for twenty places get twenty between them, ten times over."""
    layer = make_sync(capacity=20)
    children = [
        start(
            """
layer = IPCChannelLayer(PREFIX, capacity=20, **SIZES)
say("ready")
for line in sys.stdin:
    count = 0
    for number in range(20):
        try:
            layer.send(line.strip(), {})
            count += 1
        except layer.ChannelFull:
            pass
    say(count)
"""
        )
        for _ in range(4)
    ]
    for child in children:
        child.expect("ready")
    for round_number in range(10):
        for child in children:
            child.tell(f"c{round_number}")
        assert sum(int(child.line()) for child in children) == 20
    assert layer.channel_statistics("c0")["messages_pending"] == 20


def test_new_channel_takes_single_reader_patterns_only(layer: IPCChannelLayer) -> None:
    """``x?`` gives an unused ``x?`` name; anything else raises, ``x!`` included."""
    names = {layer.new_channel("reply?") for _ in range(100)}
    assert len(names) == 100
    assert all(layer.valid_channel_name(name, receive=True) for name in names)
    assert all(name.startswith("reply?") for name in names)
    for bad in ("x!", "x", "", "x?y", 3, None):
        with pytest.raises(InvalidName):
            layer.new_channel(bad)  # type: ignore[arg-type]


def test_a_message_that_cannot_be_sent_says_why(layer: IPCChannelLayer) -> None:
    """Not a dict, a reserved key, a value without a form, a message too large."""
    with pytest.raises(AssertionError):
        layer.send("c", None)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        layer.send("c", {"__asgi_channel__": "x"})
    with pytest.raises(TypeError, match=r"message\['a'\]\[1\]"):
        layer.send("c", {"a": [1, object()]})
    with pytest.raises(layer.MessageTooLarge):
        layer.send("c", {"a": bytes(9 << 20)})
    assert layer.receive(["c"]) == (None, None)


# -- groups ------------------------------------------------------------------------------


def test_groups_as_channels_1_uses_them(make_sync: MakeSync) -> None:
    """Every call returns None but group_channels; unknown ones are no error; full ones skipped."""
    layer: Any = make_sync(capacity=1)
    assert layer.group_add("g", "c") is None
    assert layer.group_add("g", "c") is None
    assert layer.group_add("g", "x!a") is None
    assert sorted(layer.group_channels("g")) == ["c", "x!a"]
    assert list(layer.group_channels("unknown")) == []
    assert layer.send_group("g", {"n": 1}) is None
    assert layer.send_group("g", {"n": 2}) is None  # full by now
    assert layer.receive(["c"]) == ("c", {"n": 1})
    assert layer.receive(["x!"]) == ("x!a", {"n": 1})
    assert layer.group_discard("g", "c") is None
    assert layer.group_discard("g", "c") is None
    assert layer.group_discard("unknown", "c") is None
    assert list(layer.group_channels("g")) == ["x!a"]
    assert layer.send_group("unknown", {}) is None
    for bad in ("g!", "a b", "g" * 100, None):
        for call in (layer.group_add, layer.group_discard):
            with pytest.raises(TypeError):
                call(bad, "c")
        with pytest.raises(TypeError):
            layer.send_group(bad, {})


def test_flush_is_seen_by_every_process_when_it_returns(start: Start, make_sync: MakeSync) -> None:
    """Messages and groups, the other side's memory of them included."""
    layer = make_sync()
    child = start(
        """
layer = IPCChannelLayer(PREFIX, **SIZES)
layer.group_add("g", "c")
layer.send("c", {"n": 1})
layer.send("x!a", {"n": 1})
layer.send_group("g", {"n": 2})
assert layer.receive(["x!"])[0]
layer.send("x!a", {"n": 3})
say("sent")
sys.stdin.readline()
say(layer.receive(["c", "x!"]), list(layer.group_channels("g")))
"""
    )
    child.expect("sent")
    layer.flush()
    child.tell()
    assert child.line() == "(None, None) []"
    child.end()


def test_statistics_of_the_specification(layer: IPCChannelLayer) -> None:
    """Both calls, with at least the six keys."""
    keys = {
        "messages_count",
        "messages_count_per_second",
        "messages_pending",
        "messages_max_age",
        "channel_full_count",
        "channel_full_count_per_second",
    }
    layer.send("c", {})
    assert keys <= layer.global_statistics().keys()
    assert keys <= layer.channel_statistics("c").keys()
    assert layer.global_statistics()["messages_pending"] == 1


# -- threads -----------------------------------------------------------------------------


def test_many_threads_block_at_once(make_sync: MakeSync) -> None:
    """``runworker --threads``: each message goes to one of them, in time."""
    layer = make_sync(block_timeout=60.0)
    got: list[int] = []

    def work() -> None:
        while True:
            _, message = layer.receive(["c"], block=True)
            assert message is not None
            if message["n"] < 0:
                return
            got.append(message["n"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(200):
        while True:
            try:
                layer.send("c", {"n": number})
                break
            except layer.ChannelFull:
                pass
    for _ in threads:
        while True:
            try:
                layer.send("c", {"n": -1})
                break
            except layer.ChannelFull:
                pass
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(200))


def test_a_thread_that_ends_gives_its_loop_back(make_sync: MakeSync) -> None:
    """Three hundred threads, one after the other, each having blocked: no slot runs out."""
    layer = make_sync(block_timeout=0.001)
    for _ in range(300):
        thread = threading.Thread(target=layer.receive, args=(["c"], True))
        thread.start()
        thread.join()
    assert os.listdir(f"/dev/shm/{layer.prefix}-bells") == ["alive"]  # the witness file
    layer.close()
    assert os.listdir(f"/dev/shm/{layer.prefix}-bells") == ["alive"]


def test_closing_ends_a_blocked_receive(make_sync: MakeSync) -> None:
    """From another thread; the layer is usable again."""
    layer = make_sync(block_timeout=60.0)
    errors: list[BaseException] = []
    about_to = threading.Event()

    def work() -> None:
        about_to.set()
        try:
            layer.receive(["c"], block=True)
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    about_to.wait()
    while not layer.core._site.ports():
        os.sched_yield()
    layer.close()
    thread.join(30)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [LayerClosed]
    layer.send("c", {})
    assert layer.receive(["c"], block=True) == ("c", {})


async def test_it_works_under_a_running_loop(layer: IPCChannelLayer) -> None:
    """Blocking a thread whose own event loop is running is allowed, as it was."""
    layer.send("c", {"n": 1})
    assert layer.receive(["c"], block=True) == ("c", {"n": 1})
    assert layer.receive(["c"], block=True) == (None, None)
    await asyncio.sleep(0)


async def test_many_receive_async_at_once(make_sync: MakeSync) -> None:
    """The coroutine of async servers, under both of its names."""
    layer = make_sync()
    tasks = [asyncio.create_task(layer.receive_async([f"c{n}"])) for n in range(20)]
    tasks += [asyncio.create_task(layer.receive_asyncio([f"d{n}"])) for n in range(20)]
    await asyncio.sleep(0)
    for n in range(20):
        layer.send(f"c{n}", {"n": n})
        layer.send(f"d{n}", {"n": n})
    got = await asyncio.gather(*tasks)
    assert [name for name, _ in got] == [f"{k}{n}" for k in "cd" for n in range(20)]


async def test_a_busy_lock_does_not_freeze_the_loop_of_receive_async(
    start: Start, make_sync: MakeSync
) -> None:
    """A stopped holder elsewhere holds up this receive and nobody else on the loop."""
    layer = make_sync(lock_timeout=3.0)
    child = start(
        """
import fcntl
fd = os.open(f"/dev/shm/{PREFIX}-messages", os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
say("locked")
sys.stdin.readline()
"""
    )
    child.expect("locked")
    receive = asyncio.create_task(layer.receive_async(["c"]))
    for _ in range(60):
        await asyncio.sleep(0)
    assert not receive.done()  # were it waiting without the loop, it would have given up by now
    child.tell()
    child.end()
    layer.send("c", {"n": 1})
    assert await receive == ("c", {"n": 1})


# -- signals -----------------------------------------------------------------------------

BLOCKED = """
layer = IPCChannelLayer(PREFIX, block_timeout=600.0, **SIZES)
def stop(*args):
    raise SystemExit(7)
signal.signal(signal.SIGTERM, stop)
say("ready")
try:
    layer.receive(["c"], block=True)
except KeyboardInterrupt:
    say("interrupted")
    layer.send("d", {"still": "works"})
    say(layer.receive(["d"], block=True))
    signal.signal(signal.SIGALRM, lambda *args: layer.send("c", {"from": "later"}))
    sys.stdin.readline()
    say(layer.receive(["c"], block=True))
"""


def test_ctrl_c_is_served_at_once_and_the_layer_goes_on(start: Start, make_sync: MakeSync) -> None:
    """KeyboardInterrupt comes out of the receive; the next receives work, and are woken."""
    layer = make_sync()
    child = start(BLOCKED)
    child.expect("ready")
    child.wait_for_state("S")
    child.signal(signal.SIGINT)
    child.expect("interrupted")
    child.expect("('d', {'still': 'works'})")
    child.tell()
    child.wait_for_state("S")
    layer.send("c", {"n": 1})
    child.expect("('c', {'n': 1})")
    child.end()


def test_sigterm_ends_a_blocked_worker_at_once(start: Start) -> None:
    """A handler that raises SystemExit ends the process with its code."""
    child = start(BLOCKED)
    child.expect("ready")
    child.wait_for_state("S")
    child.signal(signal.SIGTERM)
    child.process.wait(20)
    assert child.process.returncode == 7


def test_a_handler_that_returns_does_not_end_the_receive(start: Start, make_sync: MakeSync) -> None:
    """Handlers run while it is blocked, and it goes on waiting."""
    layer = make_sync()
    child = start(
        """
layer = IPCChannelLayer(PREFIX, block_timeout=600.0, **SIZES)
signal.signal(signal.SIGUSR1, lambda *args: say("handled"))
say("ready")
say(layer.receive(["c"], block=True))
"""
    )
    child.expect("ready")
    for _ in range(3):
        child.wait_for_state("S")
        child.signal(signal.SIGUSR1)
        child.expect("handled")
    layer.send("c", {"n": 1})
    child.expect("('c', {'n': 1})")
    child.end()


def test_interrupts_at_any_moment_lose_no_queued_message(start: Start) -> None:
    """A thousand interrupted receives take each message at most once, and the rest waits."""
    child = start(
        """
layer = IPCChannelLayer(PREFIX, block_timeout=600.0, capacity=10000, **SIZES)
class Stop(Exception):
    pass
def stop(*args):
    raise Stop
signal.signal(signal.SIGALRM, stop)
for n in range(3000):
    layer.send("c", {"n": n})
got, interrupted = [], 0
while len(got) + interrupted < 2500:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.00005 + (interrupted % 40) * 0.00001)
        while True:
            channel, message = layer.receive(["c"], block=True)
            got.append(message["n"])
    except Stop:
        interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
while True:
    channel, message = layer.receive(["c"])
    if channel is None:
        break
    got.append(message["n"])
assert got == sorted(set(got)), "doubled or out of order"
assert len(got) >= 3000 - interrupted
say("fine", len(got), interrupted)
layer.send("c", {"n": 1})
assert layer.receive(["c"], block=True)[0] == "c"
"""
    )
    child.expect("fine")
    child.end()


# -- forks -------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["unused", "used", "blocked"])
def test_children_of_a_fork_block_and_are_woken(start: Start, use: str) -> None:
    """As gunicorn --preload does it: a layer of the parent in parent and children."""
    child = start(
        """
faulthandler.dump_traceback_later(25, exit=True)
layer = IPCChannelLayer(PREFIX, block_timeout=0.01, **SIZES)
if sys.argv[2] != "unused":
    layer.send("x", {}); layer.receive(["x"])
if sys.argv[2] == "blocked":
    layer.receive(["x"], block=True)
layer.block_timeout = 20.0
pids = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        while True:
            channel, message = layer.receive([f"to.{number}"], block=True)
            if message["n"] == 50:
                os._exit(0)
            layer.send("to.parent", {"n": message["n"] + 1, "who": number})
    pids.append(pid)
for number in range(3):
    layer.send(f"to.{number}", {"n": 0})
finished = 0
while finished < 3:
    channel, message = layer.receive(["to.parent"], block=True)
    layer.send(f"to.{message['who']}", {"n": message["n"]})
    finished += message["n"] == 50
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
say("done")
""",
        use,
    )
    child.expect("done")
    child.end()


def test_a_child_that_ends_does_not_deafen_its_parent(start: Start) -> None:
    """Forked after a blocking receive and ended the ordinary way: the parent is still woken."""
    child = start(
        """
layer = IPCChannelLayer(PREFIX, block_timeout=0.01, **SIZES)
layer.receive(["x"], block=True)
layer.block_timeout = 20.0
if os.fork() == 0:
    layer.receive(["x"])
    layer.close()
    sys.exit(0)
os.wait()
for n in range(20):
    thread = threading.Thread(target=layer.send, args=("x", {"n": n}))
    thread.start()
    assert layer.receive(["x"], block=True) == ("x", {"n": n})
    thread.join()
if os.fork() == 0:
    sys.exit(0)
os.wait()
def close_when_it_waits():
    while not any(port.waiting.by_key for port in layer.core._site.ports()):
        os.sched_yield()
    layer.close()
closer = threading.Thread(target=close_when_it_waits)
closer.start()
try:
    layer.receive(["x"], block=True)
except Exception as exc:
    say(type(exc).__name__)
closer.join()
"""
    )
    child.expect("LayerClosed")
    child.end()


def test_send_group_returns_nothing(make_sync: MakeSync) -> None:
    """As Channels 1 has it; group_send returns whom it reached."""
    layer = make_sync()
    layer.group_add("g", "c")
    assert layer.send_group("g", {}) is None  # type: ignore[func-returns-value]
    assert layer.group_send("g", {}) == (1, 0)
