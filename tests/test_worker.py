"""Workers: handlers fed from channels, in this process and in others, with real signals."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from asgi_ipc import AsyncIPCChannelLayer, ChannelFull, IPCChannelLayer
from asgi_ipc.channels import IPCChannelLayer as Channels4Layer
from asgi_ipc.exceptions import InvalidName, LayerClosed
from asgi_ipc.worker import Message, SyncMessage, Worker

if TYPE_CHECKING:
    from .conftest import Child

MakeLayer = Callable[..., AsyncIPCChannelLayer]
Start = Callable[..., "Child"]

# A worker in another process; it says what it does.
WORKER = """
import logging
from asgi_ipc.worker import Worker
logging.basicConfig(stream=sys.stdout, format="log: %(message)s")
logging.getLogger("asgi_ipc.worker").setLevel(logging.INFO)
worker = Worker(AsyncIPCChannelLayer(PREFIX, **SIZES), **eval(sys.argv[2]))

@worker.on("echo")
async def echo(message):
    await message.reply({"text": message["text"], "pid": os.getpid()})

@worker.on("echo.sync")
def echo_sync(message):
    message.reply({"text": message["text"], "thread": threading.current_thread().name})

@worker.on("slow")
async def slow(message):
    say("began")
    await message.layer.receive("go")
    await message.reply({"text": "finished"})

@worker.on("slow.sync")
def slow_sync(message):
    say("began")
    message.layer.receive("go")
    message.reply({"text": "finished"})

worker.run()
say("ended")
"""


def _start_worker(start: Start, **options: Any) -> Child:
    child = start(WORKER, repr(options))
    child.expect("log: listening on echo, echo.sync, slow, slow.sync")
    return child


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """Serve beside the test, which stops it at the end."""
    task = asyncio.create_task(worker.serve())
    try:
        yield task
    finally:
        worker.stop()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def _ask(layer: AsyncIPCChannelLayer, channel: str, **content: Any) -> dict[str, Any]:
    reply_channel = await layer.new_channel("test.reply")
    await layer.send(channel, {"reply_channel": reply_channel, **content})
    return await layer.receive(reply_channel)


# -- registering -------------------------------------------------------------------------


def test_a_channel_has_one_handler(make_layer: MakeLayer) -> None:
    """A second one is refused, and the first is named."""
    worker = Worker(make_layer())
    worker.on("a", "b")(print)
    with pytest.raises(ValueError, match=r"'b' has a handler already: builtins\.print"):
        worker.on("c", "b")(print)
    with pytest.raises(InvalidName):
        worker.on("not a name")
    assert "['a', 'b']" in repr(worker)


@pytest.mark.parametrize(
    "options",
    [{"concurrency": 0}, {"threads": 0}, {"send_timeout": -1}, {"stop_timeout": -0.5}],
)
def test_options_out_of_range_are_refused(make_layer: MakeLayer, options: dict[str, Any]) -> None:
    """The error names the option and the number."""
    [(name, number)] = options.items()
    with pytest.raises(ValueError, match=rf"{name} must .*{number}"):
        Worker(make_layer(), **options)


async def test_it_does_not_serve_without_handlers_nor_twice(make_layer: MakeLayer) -> None:
    """Both are mistakes of the program, said at once."""
    worker = Worker(make_layer())
    with pytest.raises(RuntimeError, match="needs a handler"):
        await worker.serve()
    worker.on("a")(print)
    async with serving(worker):
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="serves already"):
            await worker.serve()


# -- handling ----------------------------------------------------------------------------


async def test_handlers_get_what_was_sent(make_layer: MakeLayer) -> None:
    """A coroutine runs on the loop, a function on a thread, an object as its call is."""
    layer = make_layer()
    worker = Worker(layer)

    @worker.on("async")
    async def on_loop(message: Message) -> None:
        assert message.layer is layer and "text" in message and message.get("none", 1) == 1
        await message.reply({"got": message.content, "channel": message.channel})

    @worker.on("sync")
    def on_thread(message: SyncMessage) -> None:
        assert threading.current_thread() is not threading.main_thread()
        message.reply({"got": message.content, "channel": message.channel})

    class Counter:
        async def __call__(self, message: Message) -> None:
            await message.send(message["to"], {"count": 1})

    worker.on("object")(Counter())
    async with serving(worker):
        for channel in ("async", "sync"):
            answer = await _ask(layer, channel, text="hello", data=b"\0")
            assert answer["channel"] == channel
            assert (answer["got"]["text"], answer["got"]["data"]) == ("hello", b"\0")
        await layer.send("object", {"to": "elsewhere"})
        assert await layer.receive("elsewhere") == {"count": 1}


@pytest.mark.parametrize("face", [AsyncIPCChannelLayer, IPCChannelLayer, Channels4Layer])
async def test_every_face_will_do(make_layer: MakeLayer, face: Any) -> None:
    """A worker over any face answers whoever asks over another one."""
    asking = make_layer()
    layer = face(asking.prefix, message_memory=8 << 20, group_memory=4 << 20)
    worker = Worker(layer)

    @worker.on("echo")
    async def echo(message: Message) -> None:
        await message.reply({"text": message["text"]})

    async with serving(worker):
        assert await _ask(asking, "echo", text="hello") == {"text": "hello"}
    (layer.core if isinstance(layer, IPCChannelLayer) else layer).close_now()


async def test_a_blocking_layer_that_looks_up_now_and_then_serves_on(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ``block_timeout`` ends a receive, and not the worker."""
    layer = IPCChannelLayer(
        prefix, message_memory=8 << 20, group_memory=4 << 20, block_timeout=0.01
    )
    worker = Worker(layer)
    times_up = asyncio.Event()
    receive = layer.core.receive_async

    async def watched(*arguments: Any) -> Any:
        got = await receive(*arguments)
        if got == (None, None):
            times_up.set()
        return got

    monkeypatch.setattr(layer.core, "receive_async", watched)

    @worker.on("echo")
    async def echo(message: Message) -> None:
        await message.reply({"text": message["text"]})

    async with serving(worker):
        await times_up.wait()
        assert await _ask(layer.core, "echo", text="hello") == {"text": "hello"}
    layer.close()


async def test_a_process_specific_channel_has_one_handler_for_all_below_it(
    make_layer: MakeLayer,
) -> None:
    """``name!`` is registered, and the message names the channel it was sent to."""
    layer = make_layer()
    worker = Worker(layer)

    @worker.on("mine!")
    async def mine(message: Message) -> None:
        await message.reply({"channel": message.channel})

    async with serving(worker):
        assert await _ask(layer, "mine!one") == {"channel": "mine!one"}
        assert await _ask(layer, "mine!two") == {"channel": "mine!two"}


async def test_a_message_without_a_reply_channel_cannot_be_replied_to(
    make_layer: MakeLayer,
) -> None:
    """The error names the channel and what to do instead."""
    layer = make_layer()
    worker = Worker(layer)
    raised: asyncio.Queue[Exception] = asyncio.Queue()

    @worker.on("event")
    async def event(message: Message) -> None:
        try:
            await message.reply({})
        except ValueError as exc:
            raised.put_nowait(exc)

    async with serving(worker):
        await layer.send("event", {})
        assert "'event' names no reply_channel: send()" in str(await raised.get())


# -- how many at once --------------------------------------------------------------------


async def test_no_more_is_taken_than_there_are_places(make_layer: MakeLayer) -> None:
    """With every place taken, messages stay in the channel, for other workers."""
    layer = make_layer()
    worker = Worker(layer, concurrency=2)
    began: asyncio.Queue[int] = asyncio.Queue()
    go = asyncio.Event()
    under_way = most = 0

    @worker.on("job")
    async def job(message: Message) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        began.put_nowait(message["number"])
        await go.wait()
        under_way -= 1

    for number in range(5):
        await layer.send("job", {"number": number})
    async with serving(worker):
        assert [await began.get(), await began.get()] == [0, 1]
        assert (await layer.channel_statistics("job"))["messages_pending"] == 3
        go.set()
        assert [await began.get() for _ in range(3)] == [2, 3, 4]
    assert most == 2


async def test_a_handler_that_waits_for_nothing_is_done_before_the_next_is_taken(
    make_layer: MakeLayer,
) -> None:
    """So workers share a burst, and a worker that is killed holds little."""
    layer = make_layer()
    worker = Worker(layer)
    pending = []

    @worker.on("job")
    async def job(message: Message) -> None:
        pending.append((await layer.channel_statistics("job"))["messages_pending"])
        if message.get("last"):
            worker.stop()

    await layer.send_many([("job", {"last": number == 9}) for number in range(10)])
    await worker.serve()
    assert pending == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


async def test_functions_run_on_as_many_threads_as_asked_for(make_layer: MakeLayer) -> None:
    """Two that wait for each other get on; what is on the loop goes on beside them."""
    layer = make_layer()
    worker = Worker(layer, threads=2)
    meeting = threading.Barrier(3)

    @worker.on("meet")
    def meet(message: SyncMessage) -> None:
        meeting.wait(30)
        message.reply({"met": True})

    @worker.on("echo")
    async def echo(message: Message) -> None:
        await message.reply({"text": message["text"]})

    async with serving(worker):
        answers = [asyncio.create_task(_ask(layer, "meet")) for _ in range(3)]
        assert (await _ask(layer, "echo", text="beside"))["text"] == "beside"
        assert (await layer.channel_statistics("meet"))["messages_pending"] == 1
        await asyncio.to_thread(meeting.wait, 30)
        others = asyncio.create_task(_ask(layer, "meet"))
        await asyncio.to_thread(meeting.wait, 30)
        assert await asyncio.gather(*answers, others) == [{"met": True}] * 4


# -- failing -----------------------------------------------------------------------------


async def test_a_handler_that_fails_is_logged_and_harms_nobody(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names handler and channel; the next message is handled."""
    layer = make_layer()
    worker = Worker(layer)

    @worker.on("async")
    async def bad_coroutine(message: Message) -> None:
        if message["text"] == "bad":
            raise KeyError("gone wrong")
        await message.reply({"text": message["text"]})

    @worker.on("sync")
    def bad_function(message: SyncMessage) -> None:
        if message["text"] == "bad":
            raise KeyError("gone wrong")
        message.reply({"text": message["text"]})

    async with serving(worker):
        for channel in ("async", "sync"):
            await layer.send(channel, {"text": "bad"})
            assert await _ask(layer, channel, text="good") == {"text": "good"}
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(lines) == 2
    assert "bad_coroutine failed on a message of 'async'" in lines[0]
    assert "bad_function failed on a message of 'sync'" in lines[1]
    assert caplog.text.count("KeyError: 'gone wrong'") == 2


async def test_a_client_is_told_of_a_failed_handler_once(make_layer: MakeLayer) -> None:
    """A request gets 500, a handshake is refused; a response that has begun is given up."""
    layer = make_layer()
    worker = Worker(layer)

    @worker.on("http.request", "websocket.connect", "websocket.receive")
    async def bad(message: Message) -> None:
        if message.get("first"):
            await message.reply({"status": 200, "more_content": True})
        await message.reply({"content": object()})

    async with serving(worker):
        answer = await _ask(layer, "http.request")
        assert (answer["status"], answer["content"]) == (500, b"Internal Server Error\n")
        assert await _ask(layer, "websocket.connect") == {"close": True}
        reply_channel = await layer.new_channel("test.reply")
        await layer.send("http.request", {"reply_channel": reply_channel, "first": True})
        await layer.send("websocket.receive", {"reply_channel": reply_channel})
        assert (await layer.receive(reply_channel))["status"] == 200
        given_up = {"content": b"", "more_content": True, "closed": True}
        assert await layer.receive(reply_channel) == given_up
        assert await _ask(layer, "websocket.connect") == {"close": True}  # all have been handled
        assert await layer.receive_async([reply_channel], block=False) == (None, None)


async def test_a_function_that_fails_in_a_response_gives_it_up(make_layer: MakeLayer) -> None:
    """As a coroutine does; one that has ended its response has nothing to give up."""
    layer = make_layer()
    worker = Worker(layer)

    @worker.on("http.request")
    def bad(message: SyncMessage) -> None:
        message.reply({"status": 200, "more_content": True})
        if message.get("whole"):
            message.reply({"content": b"all"})
        raise KeyError

    async with serving(worker):
        for whole in (True, False):
            reply_channel = await layer.new_channel("test.reply")
            await layer.send("http.request", {"reply_channel": reply_channel, "whole": whole})
            assert (await layer.receive(reply_channel))["status"] == 200
            last = await layer.receive(reply_channel)
            assert last.get("closed", False) is not whole
        assert await layer.receive_async([reply_channel], block=False) == (None, None)


@pytest.mark.parametrize("how", ["an inner task", "itself"])
async def test_a_handler_that_is_cancelled_from_inside_has_failed(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Its client gets 500, and the worker goes on."""
    layer = make_layer()
    worker = Worker(layer)

    @worker.on("http.request")
    async def bad(message: Message) -> None:
        if how == "itself":
            task = asyncio.current_task()
        else:
            task = asyncio.create_task(asyncio.Event().wait())
        assert task is not None
        task.cancel()
        await task if how != "itself" else await asyncio.Event().wait()

    async with serving(worker):
        for _ in range(2):
            assert (await _ask(layer, "http.request"))["status"] == 500
    assert "bad cancelled itself on a message of 'http.request'" in caplog.text


async def test_a_handler_that_is_given_up_is_answered_for(make_layer: MakeLayer) -> None:
    """At ``stop_timeout``: 503 for a request, a refusal, and the end of what has begun."""
    layer = make_layer()
    worker = Worker(layer, stop_timeout=0.01)
    under_way = asyncio.Semaphore(0)

    @worker.on("http.request", "websocket.connect")
    async def for_ever(message: Message) -> None:
        if message.get("begins"):
            await message.reply({"status": 200, "more_content": True})
        under_way.release()
        await asyncio.Event().wait()

    serving_task = asyncio.create_task(worker.serve())
    asking = [
        asyncio.create_task(_ask(layer, "http.request")),
        asyncio.create_task(_ask(layer, "websocket.connect")),
    ]
    reply_channel = await layer.new_channel("test.reply")
    await layer.send("http.request", {"reply_channel": reply_channel, "begins": True})
    for _ in range(3):
        await under_way.acquire()
    worker.stop()
    await serving_task
    request, connect = await asyncio.gather(*asking)
    assert request["status"] == 503 and [b"retry-after", b"1"] in request["headers"]
    assert connect == {"close": True}
    assert (await layer.receive(reply_channel))["status"] == 200
    assert (await layer.receive(reply_channel))["closed"]


async def test_a_function_that_is_given_up_answers_for_itself(make_layer: MakeLayer) -> None:
    """It cannot be cancelled, so it goes on, and what becomes of it is said by it alone."""
    layer = make_layer()
    worker = Worker(layer, stop_timeout=0.01)
    began, go = threading.Event(), threading.Event()

    @worker.on("http.request")
    def slow(message: SyncMessage) -> None:
        began.set()
        go.wait(30)
        raise KeyError

    serving_task = asyncio.create_task(worker.serve())
    asking = asyncio.create_task(_ask(layer, "http.request"))
    await asyncio.to_thread(began.wait, 30)
    worker.stop()
    await serving_task
    go.set()
    assert (await asking)["status"] == 500


# -- handlers that end the process -------------------------------------------------------

EXITING = """
import logging
from asgi_ipc.worker import Worker
logging.basicConfig(stream=sys.stdout, format="log: %(message)s")
worker = Worker(AsyncIPCChannelLayer(PREFIX, **SIZES))

@worker.on("exit")
async def leave(message):
    sys.exit(7)

@worker.on("exit.sync")
def leave_sync(message):
    sys.exit(7)

@worker.on("slow")
async def slow(message):
    say("began")
    await message.layer.receive("go")
    await message.reply({"text": "finished"})

say("ready")
worker.run()
"""


@pytest.mark.parametrize("channel", ["exit", "exit.sync"])
async def test_sys_exit_in_a_handler_stops_the_worker(
    make_layer: MakeLayer, start: Start, channel: str
) -> None:
    """As SIGTERM does: what is in hand is finished, nothing more is taken; then with its status."""
    layer = make_layer()
    child = start(EXITING)
    child.expect("ready")
    asking = asyncio.create_task(_ask(layer, "slow"))
    await asyncio.to_thread(child.expect, "began")
    await layer.send(channel, {})
    line = await asyncio.to_thread(child.expect, "log: __main__.leave")
    assert line.endswith(f"ends the worker on a message of {channel!r}: SystemExit(7)")
    await layer.send("go", {})
    assert await asking == {"text": "finished"}
    await asyncio.to_thread(child.process.wait)
    assert child.process.returncode == 7


# -- handlers that would do nothing ------------------------------------------------------


def test_a_generator_is_no_handler(make_layer: MakeLayer) -> None:
    """It is refused by name: calling it does nothing."""
    worker = Worker(make_layer())

    async def asynchronous(message: Message) -> AsyncIterator[None]:
        yield

    def plain(message: SyncMessage) -> Iterator[None]:
        yield

    class AnObject:
        def __call__(self, message: SyncMessage) -> Iterator[None]:
            yield

    for handler in (asynchronous, plain, functools.partial(asynchronous), AnObject()):
        with pytest.raises(TypeError, match="is a generator, and nobody would run it"):
            worker.on("a")(handler)
    with pytest.raises(TypeError, match="a handler must be callable, not 5"):
        worker.on("a")(5)  # type: ignore[type-var]


async def test_a_function_that_returns_a_coroutine_has_failed(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody would await it: the log says so, and the client gets 500."""
    layer = make_layer()
    worker = Worker(layer)

    async def answer(message: SyncMessage) -> None:
        raise AssertionError

    worker.on("http.request")(lambda message: answer(message))
    async with serving(worker):
        assert (await _ask(layer, "http.request"))["status"] == 500
    assert "returned a coroutine, which nobody awaits: declare it with 'async def'" in caplog.text


async def test_a_lock_held_for_long_does_not_end_it(
    make_layer: MakeLayer, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, and serves on when the lock is free."""
    layer = make_layer(lock_timeout=0.05)
    worker = Worker(layer)

    @worker.on("echo")
    async def echo(message: Message) -> None:
        await message.reply({"text": message["text"]})

    await layer.send("other", {})
    holder = start(
        """
        import fcntl
        fd = os.open(f"/dev/shm/{PREFIX}-messages", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        say("locked")
        sys.stdin.readline()
        """
    )
    holder.expect("locked")
    async with serving(worker):
        while "cannot receive" not in caplog.text:
            await asyncio.sleep(0.01)
        holder.kill()
        assert await _ask(layer, "echo", text="hello") == {"text": "hello"}


async def test_a_layer_closed_under_it_ends_it(make_layer: MakeLayer) -> None:
    """After what is in hand is finished, with the reason."""
    layer = make_layer()
    worker = Worker(layer)
    began, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @worker.on("job")
    async def job(message: Message) -> None:
        began.set()
        await go.wait()
        done.set()

    await layer.send("job", {})
    task = asyncio.create_task(worker.serve())
    await began.wait()
    await layer.close()
    go.set()
    with pytest.raises(LayerClosed):
        await task
    assert done.is_set()


# -- sending into full channels ----------------------------------------------------------


async def test_replies_wait_for_room_and_keep_their_order(make_layer: MakeLayer) -> None:
    """Ten handlers answer into a channel of two: each reply arrives, in order."""
    layer = make_layer(channel_capacity={"test.reply*": 2})
    worker = Worker(layer)

    @worker.on("count")
    async def count(message: Message) -> None:
        await message.reply({"number": message["number"]})

    reply_channel = await layer.new_channel("test.reply")
    async with serving(worker):
        for number in range(10):
            await layer.send("count", {"reply_channel": reply_channel, "number": number})
        while (await layer.channel_statistics("count"))["messages_pending"]:
            await asyncio.sleep(0)
        got = [(await layer.receive(reply_channel))["number"] for _ in range(10)]
    assert got == list(range(10))


async def test_functions_wait_for_room_too(make_layer: MakeLayer) -> None:
    """A thread sleeps between its attempts, and gets its replies through."""
    layer = make_layer(channel_capacity={"test.reply*": 2})
    worker = Worker(layer)

    @worker.on("count")
    def count(message: SyncMessage) -> None:
        for number in range(10):
            message.reply({"number": number})

    reply_channel = await layer.new_channel("test.reply")
    async with serving(worker):
        await layer.send("count", {"reply_channel": reply_channel})
        got = [(await layer.receive(reply_channel))["number"] for _ in range(10)]
    assert got == list(range(10))


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_reply_that_finds_no_room_for_long_is_an_error_of_its_handler(
    make_layer: MakeLayer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """``ChannelFull`` after ``send_timeout``; nobody else is held up by it meanwhile."""
    layer = make_layer(channel_capacity={"full": 1})
    worker = Worker(layer, send_timeout=0.05, threads=2)
    ended: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    @worker.on("async")
    async def reply(message: Message) -> None:
        try:
            await message.reply({})
        except ChannelFull as exc:
            await ended.put(str(exc))
            raise

    @worker.on("sync")
    def reply_sync(message: SyncMessage) -> None:
        try:
            message.reply({})
        except ChannelFull as exc:
            loop.call_soon_threadsafe(ended.put_nowait, str(exc))
            raise

    await layer.send("full", {})
    async with serving(worker):
        await layer.send(kind, {"reply_channel": "full"})
        assert await _ask(layer, kind) == {}
        assert await ended.get() == "channel 'full' is full: 1 of 1 messages"
    assert "ChannelFull" in caplog.text
    caplog.clear()  # a logged traceback keeps alive what it went through


# -- request bodies ----------------------------------------------------------------------


def _body_worker(layer: AsyncIPCChannelLayer, kind: str, timeout: float = 60.0) -> Worker:
    worker = Worker(layer)

    async def read(message: Message) -> None:
        try:
            await message.body(timeout)
            answer: dict[str, Any] = {"body": await message.body()}
        except OSError as exc:
            answer = {"error": type(exc).__name__}
        await message.reply(answer)

    def read_sync(message: SyncMessage) -> None:
        try:
            message.body(timeout)
            answer: dict[str, Any] = {"body": message.body()}
        except OSError as exc:
            answer = {"error": type(exc).__name__}
        message.reply(answer)

    worker.on("http.request")(read if kind == "async" else read_sync)
    return worker


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_body_is_put_together_from_its_chunks(make_layer: MakeLayer, kind: str) -> None:
    """What the request brings, then the body channel up to its last chunk."""
    layer = make_layer()
    async with serving(_body_worker(layer, kind)):
        assert await _ask(layer, "http.request") == {"body": b""}
        assert await _ask(layer, "http.request", body=b"all") == {"body": b"all"}
        await layer.send("http.request.body?a", {"content": b"middle, ", "more_content": True})
        asking = asyncio.create_task(
            _ask(layer, "http.request", body=b"begin, ", body_channel="http.request.body?a")
        )
        await layer.send("http.request.body?a", {"content": b"end", "more_content": False})
        assert await asking == {"body": b"begin, middle, end"}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_body_of_another_length_than_was_said_is_an_error(
    make_layer: MakeLayer, kind: str
) -> None:
    """Shorter or longer, in the request or in chunks; the handler never sees it."""
    layer = make_layer()
    headers = [[b"host", b"x"], [b"content-length", b"4"]]
    async with serving(_body_worker(layer, kind)):
        assert await _ask(layer, "http.request", headers=headers, body=b"four") == {"body": b"four"}
        for body in (b"fo", b"fourty"):
            answer = await _ask(layer, "http.request", headers=headers, body=body)
            assert answer == {"error": "ConnectionAbortedError"}
        await layer.send("http.request.body?c", {"content": b"ur", "more_content": False})
        asked = {"headers": headers, "body_channel": "http.request.body?c"}
        assert await _ask(layer, "http.request", **asked) == {"error": "ConnectionAbortedError"}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_body_that_does_not_come_is_an_error(make_layer: MakeLayer, kind: str) -> None:
    """One for a client that has gone, another for one that is too slow."""
    layer = make_layer()
    async with serving(_body_worker(layer, kind, timeout=0.01)):
        await layer.send("http.request.body?a", {"closed": True})
        answer = await _ask(layer, "http.request", body_channel="http.request.body?a")
        assert answer == {"error": "ConnectionAbortedError"}
        answer = await _ask(layer, "http.request", body_channel="http.request.body?b")
        assert answer == {"error": "TimeoutError"}


# -- stopping ----------------------------------------------------------------------------


def _takes_jobs_for_ever(worker: Worker) -> asyncio.Event:
    """Register a handler that never ends; the event says that it has begun."""
    began = asyncio.Event()

    @worker.on("job")
    async def job(message: Message) -> None:
        began.set()
        await asyncio.Event().wait()

    return began


async def test_a_cancelled_serve_cancels_what_is_in_hand_and_loses_nothing_else(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """What was not taken is there for the next one."""
    layer = make_layer()
    worker = Worker(layer, concurrency=1)
    began = _takes_jobs_for_ever(worker)
    await layer.send_many([("job", {"number": number}) for number in range(3)])
    async with serving(worker) as task:
        await began.wait()
        task.cancel()
    assert "was cancelled on a message of 'job'" in caplog.text
    assert [(await layer.receive("job"))["number"] for _ in range(2)] == [1, 2]


async def test_a_stop_waits_for_handlers_only_so_long(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """After ``stop_timeout`` they are cancelled, and it says how many."""
    layer = make_layer()
    worker = Worker(layer, stop_timeout=0.01)
    began = _takes_jobs_for_ever(worker)
    await layer.send("job", {})
    task = asyncio.create_task(worker.serve())
    await began.wait()
    assert not worker.is_stopping
    worker.stop()
    assert worker.is_stopping
    await task
    assert "handlers still under way 0.01 s after the stop, and given up: 1" in caplog.text


async def test_it_can_be_stopped_by_a_thread_and_serve_again(make_layer: MakeLayer) -> None:
    """``stop`` may come from anywhere; what was sent meanwhile is read the next time."""
    layer = make_layer()
    worker = Worker(layer)
    worker.stop()  # it does not serve: no effect

    @worker.on("stop")
    def stop(message: SyncMessage) -> None:
        worker.stop()
        worker.stop()
        message.reply({})

    for _ in range(2):
        asking = asyncio.create_task(_ask(layer, "stop"))
        await worker.serve()
        assert await asking == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("channel", ["slow", "slow.sync"])
async def test_a_signal_lets_it_finish_what_is_in_hand(
    make_layer: MakeLayer, start: Start, number: signal.Signals, channel: str
) -> None:
    """The answer under way is sent, no other message is taken, and it ends with success."""
    layer = make_layer()
    child = _start_worker(start)
    asking = asyncio.create_task(_ask(layer, channel))
    await asyncio.to_thread(child.expect, "began")
    child.signal(number)
    await asyncio.to_thread(child.expect, f"log: {number.name}: stopping")
    await asyncio.to_thread(child.expect, "log: finishing the messages in hand: 1")
    await layer.send("echo", {"text": "for another one"})
    await layer.send("go", {})
    assert await asking == {"text": "finished"}
    assert (await asyncio.to_thread(child.end)).strip() == "ended"
    assert (await layer.receive("echo"))["text"] == "for another one"


async def test_a_second_signal_cancels_what_is_in_hand(make_layer: MakeLayer, start: Start) -> None:
    """A handler that never ends does not need SIGKILL."""
    layer = make_layer()
    child = _start_worker(start)
    await layer.send("slow", {"reply_channel": "nobody"})
    await asyncio.to_thread(child.expect, "began")
    child.signal(signal.SIGINT)
    await asyncio.to_thread(child.expect, "log: SIGINT: stopping")
    await asyncio.to_thread(child.expect, "log: finishing the messages in hand: 1")
    child.signal(signal.SIGINT)
    rest = await asyncio.to_thread(child.end)
    assert "SIGINT again: cancelling what is in hand" in rest
    assert "slow was cancelled on a message of 'slow'" in rest
    assert "ended" in rest


async def test_an_idle_worker_ends_at_once(start: Start) -> None:
    """SIGTERM finds it asleep, and it ends with success."""
    child = _start_worker(start)
    await asyncio.to_thread(child.wait_for_state, "S")
    child.signal(signal.SIGTERM)
    assert "ended" in await asyncio.to_thread(child.end)


async def test_run_on_another_thread_heeds_no_signals(make_layer: MakeLayer) -> None:
    """It serves there until it is stopped, and the process keeps its handlers."""
    layer = make_layer()
    worker = Worker(layer)
    before = signal.getsignal(signal.SIGTERM)

    @worker.on("echo")
    async def echo(message: Message) -> None:
        await message.reply({"text": message["text"]})

    running = threading.Thread(target=worker.run)
    running.start()
    try:
        assert await _ask(layer, "echo", text="hello") == {"text": "hello"}
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        worker.stop()
        await asyncio.to_thread(running.join)


def test_run_gives_the_signal_handlers_back(make_layer: MakeLayer) -> None:
    """What the program had installed before is there again."""
    layer = make_layer()
    worker = Worker(layer)
    signals = (signal.SIGTERM, signal.SIGINT)

    def own(*_: object) -> None:
        raise AssertionError("the worker's own handlers are installed")

    @worker.on("stop")
    async def stop(message: Message) -> None:
        signal.raise_signal(signal.SIGTERM)

    layer.sync.send("stop", {})
    before = [signal.signal(number, own) for number in signals]
    try:
        worker.run()
        assert [signal.getsignal(number) for number in signals] == [own, own]
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


# -- several of them ---------------------------------------------------------------------


async def test_several_workers_share_a_channel(make_layer: MakeLayer, start: Start) -> None:
    """Each message is handled once, and each of three processes does its part."""
    layer = make_layer(channel_capacity={"echo": 1000})
    children = [_start_worker(start) for _ in range(3)]
    reply_channel = await layer.new_channel("test.reply")
    texts: list[str] = []
    pids: set[int] = set()
    sent = 0
    while len(texts) < 300 or len(pids) < 3:
        while sent - len(texts) < 30:
            await layer.send("echo", {"reply_channel": reply_channel, "text": str(sent)})
            sent += 1
        answer = await layer.receive(reply_channel)
        texts.append(answer["text"])
        pids.add(answer["pid"])
    while len(texts) < sent:
        texts.append((await layer.receive(reply_channel))["text"])
    assert sorted(texts, key=int) == [str(number) for number in range(sent)]
    assert pids == {child.pid for child in children}
    assert await layer.receive_async([reply_channel], block=False) == (None, None)


async def test_a_killed_worker_takes_only_what_it_held(make_layer: MakeLayer, start: Start) -> None:
    """The rest is answered by the next one."""
    layer = make_layer()
    child = _start_worker(start, concurrency=2)
    reply_channel = await layer.new_channel("test.reply")
    for _ in range(2):
        await layer.send("slow", {"reply_channel": reply_channel})
        await asyncio.to_thread(child.expect, "began")
    for number in range(5):
        await layer.send("echo", {"reply_channel": reply_channel, "text": str(number)})
    child.kill()
    _start_worker(start)
    got = [(await layer.receive(reply_channel))["text"] for _ in range(5)]
    assert got == ["0", "1", "2", "3", "4"]


async def test_a_log_line_says_what_it_listens_on(
    make_layer: MakeLayer, caplog: pytest.LogCaptureFixture
) -> None:
    """At INFO, under ``asgi_ipc.worker``."""
    caplog.set_level(logging.INFO, "asgi_ipc.worker")
    layer = make_layer()
    worker = Worker(layer)

    @worker.on("a", "b")
    async def once(_: Message) -> None:
        worker.stop()

    await layer.send("a", {})
    await worker.serve()
    assert "listening on a, b" in caplog.text
