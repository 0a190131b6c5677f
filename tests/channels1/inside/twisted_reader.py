# mypy: ignore-errors
# (runs in the Channels 1 environment, whose packages the type checker does not see)
"""receive_twisted as Daphne 1.4.2 uses it, on one reactor in one thread.

    twisted_reader.py REACTOR THREAD [SCENARIO ...]     REACTOR: epoll, select, asyncio
                                                        THREAD: main, other

A scenario is a generator for `inlineCallbacks`; it raises when something is wrong. They run one
after the other, each with a prefix of its own. Then the reactor is stopped, with some receives
still pending, and the process has to end by itself with status 0.
"""

import os
import subprocess
import sys
import threading
import traceback

PREFIX = os.environ["CHANNELS1_SITE_PREFIX"]
HOME = "daphne.response.abcdefghij!"


def install_reactor(kind):
    """Choose the reactor before anything imports it."""
    if kind == "asyncio":
        from twisted.internet import asyncioreactor

        asyncioreactor.install()
    elif kind == "select":
        from twisted.internet import selectreactor

        selectreactor.install()
    from twisted.internet import reactor

    return reactor


def make_layer(**config):
    """Build a layer as the settings of a site would."""
    import asgi_ipc

    return asgi_ipc.IPCChannelLayer(prefix=os.environ["CHANNELS1_SITE_PREFIX"], **config)


def send_from_another_process(*arguments):
    """Start this script as a sender; see `send()`."""
    return subprocess.Popen([sys.executable, __file__, "send", *map(str, arguments)])


def send(count, *channels):
    """Send `count` numbered messages to each channel, waiting whenever one is full."""
    import time

    layer = make_layer()
    for number in range(int(count)):
        for channel in channels:
            while True:
                try:
                    layer.send(channel, {"number": number, "channel": channel})
                except layer.ChannelFull:
                    time.sleep(0.001)
                else:
                    break


def pause(reactor, seconds=0.0):
    """Return a Deferred that fires after `seconds`, the reactor having had its turn."""
    from twisted.internet.defer import Deferred

    turn = Deferred()
    reactor.callLater(seconds, turn.callback, None)
    return turn


def check(condition, what):
    """Raise unless `condition` holds (unlike assert, under -O too)."""
    if not condition:
        raise AssertionError(what)


# --- scenarios


def waits(reactor):
    """A Deferred is pending while there is nothing, and fires when another process sends."""
    layer = make_layer()
    for _ in range(3):
        waiting = layer.receive_twisted([HOME])
        check(not waiting.called, f"fired at once with {getattr(waiting, 'result', None)!r}")
        yield pause(reactor)
        check(not waiting.called, "fired without a message")
        sender = send_from_another_process(1, HOME + "client")
        channel, message = None, None
        while channel is None:  # (None, None) after a while is allowed
            channel, message = yield waiting
            waiting = None if channel else layer.receive_twisted([HOME])
        check(channel == HOME + "client", channel)
        check(message == {"number": 0, "channel": channel}, message)
        sender.wait()


def keeps_order(reactor):
    """A thousand messages of another process arrive once each and in order."""
    layer = make_layer()
    sender = send_from_another_process(1000, HOME + "client")
    numbers = []
    while len(numbers) < 1000:
        channel, message = yield layer.receive_twisted([HOME])
        if channel:
            numbers.append(message["number"])
    check(numbers == list(range(1000)), numbers)
    sender.wait()


def leaves_turns(reactor):
    """A channel that never runs empty does not keep the reactor from anything else."""
    layer = make_layer()
    others = []
    reactor.callLater(0, others.append, "timer")
    reactor.callFromThread(others.append, "call")
    layer.send(HOME + "a", {})
    while len(others) < 2:
        layer.send(HOME + "a", {})
        yield layer.receive_twisted([HOME])


def does_not_poll(reactor):
    """Waiting takes neither a thread nor a frequent timer."""
    layer = make_layer()
    yield pause(reactor)
    threads = threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))
    waiting = [layer.receive_twisted([HOME]), layer.receive_twisted(["other.channel"])]
    yield pause(reactor)
    while layer.core._site.ports()[0]._pause_s < 5:  # until it has asked for inotify, and looked
        yield pause(reactor, 0.05)
    check(threading.active_count() == threads, threading.enumerate())
    soon = [call for call in reactor.getDelayedCalls() if call.getTime() - reactor.seconds() < 1]
    check(soon == [], f"timers within a second: {soon}")
    check(not any(d.called for d in waiting), "fired without a message")
    # One slot for the whole loop, not one for each waiter.
    check(len(os.listdir("/proc/self/fd")) <= descriptors + 8, "descriptors")


def serves_many_waiters(reactor):
    """Each of 50 waiters on channels of their own gets its own message."""
    from twisted.internet.defer import gatherResults

    layer = make_layer()
    names = [f"many.{number}!" for number in range(50)]
    waiting = [layer.receive_twisted([name]) for name in names]
    sender = send_from_another_process(1, *(name + "x" for name in reversed(names)))
    received = yield gatherResults(waiting)
    check([channel for channel, _ in received] == [name + "x" for name in names], received)
    sender.wait()


def shares_a_channel(reactor):
    """Two waiters on one channel get one message each; a third stays pending."""
    from twisted.internet.defer import DeferredList

    layer = make_layer()
    waiting = [layer.receive_twisted(["shared"]) for _ in range(3)]
    sender = send_from_another_process(2, "shared")
    sender.wait()
    first = yield DeferredList(waiting, fireOnOneCallback=True)
    numbers = [first[0][1]["number"]]
    while sum(d.called for d in waiting) < 2:
        yield pause(reactor, 0.001)
    second = next(d for n, d in enumerate(waiting) if d.called and n != first[1])
    second.addCallback(lambda result: numbers.append(result[1]["number"]))
    check(sorted(numbers) == [0, 1], numbers)
    check(sum(d.called for d in waiting) == 2, "a third message appeared")


def reads_several_channels(reactor):
    """One call reads several channels, and nothing of another."""
    layer = make_layer()
    for name in ("one", "two?x", "three!y"):
        layer.send(name, {"name": name})
    layer.send("four", {})
    seen = set()
    while len(seen) < 3:
        channel, message = yield layer.receive_twisted(["one", "two?x", "three!"])
        if channel:
            check(message == {"name": channel}, message)
            seen.add(channel)
    check(seen == {"one", "two?x", "three!y"}, seen)


def wakes_for_itself(reactor):
    """A message of the same layer object wakes it: from the reactor, and from other threads."""
    layer = make_layer()
    waiting = layer.receive_twisted([HOME])
    layer.send(HOME + "own", {"from": "reactor"})
    received = yield waiting
    check(received == (HOME + "own", {"from": "reactor"}), received)
    for number in range(4):
        waiting = layer.receive_twisted([HOME])
        thread = threading.Thread(target=layer.send, args=(HOME + "own", {"thread": number}))
        thread.start()
        received = yield waiting
        check(received == (HOME + "own", {"thread": number}), received)
        thread.join()


def receives_group_sends(reactor):
    """Every member below one home gets a group's message once."""
    layer = make_layer()
    members = [f"{HOME}{number}" for number in range(30)]
    for member in members:
        layer.group_add("members", member)
    other = make_layer()
    for number in range(3):
        other.send_group("members", {"text": str(number)})
    received = []
    while len(received) < 90:
        channel, message = yield layer.receive_twisted([HOME])
        if channel:
            received.append((channel, message["text"]))
    check(len(set(received)) == 90, "a message came twice")
    for member in members:
        texts = [text for channel, text in received if channel == member]
        check(texts == ["0", "1", "2"], texts)


def expires(reactor):
    """An expired message is not delivered, and the one behind it is."""
    short = make_layer(expiry=0.05)
    layer = make_layer()
    short.send(HOME + "a", {"age": "old"})
    yield pause(reactor, 0.2)
    layer.send(HOME + "a", {"age": "new"})
    channel, message = None, None
    while channel is None:
        channel, message = yield layer.receive_twisted([HOME])
    check(message == {"age": "new"}, message)


def refuses_bad_names(reactor):
    """A name that may not be read is a TypeError, raised or in the Deferred."""
    layer = make_layer()
    for name in ("with space", HOME + "client", 7):
        try:
            yield layer.receive_twisted([name])
        except TypeError:
            continue
        check(False, f"{name!r} was accepted")


def imports_no_reactor(reactor):
    """Importing the package and building a layer does not choose a reactor."""
    code = (
        "import sys, asgi_ipc; layer = asgi_ipc.IPCChannelLayer(prefix=sys.argv[1]);"
        "assert 'twisted' in layer.extensions;"
        "assert 'twisted.internet.reactor' not in sys.modules"
    )
    prefix = os.environ["CHANNELS1_SITE_PREFIX"]
    check(subprocess.run([sys.executable, "-c", code, prefix]).returncode == 0, "see above")
    yield pause(reactor)


SCENARIOS = {
    function.__name__: function
    for function in (
        waits,
        keeps_order,
        leaves_turns,
        does_not_poll,
        serves_many_waiters,
        shares_a_channel,
        reads_several_channels,
        wakes_for_itself,
        receives_group_sends,
        expires,
        refuses_bad_names,
        imports_no_reactor,
    )
}


def leave_receives_pending():
    """Start receives that never get anything: they must not keep the process alive."""
    layer = make_layer()
    for number in range(10):
        layer.receive_twisted([f"never.{number}"])


def main():
    """Run the scenarios; return the exit status."""
    kind, thread_kind, *names = sys.argv[1:]
    reactor = install_reactor(kind)
    from twisted.internet.defer import inlineCallbacks

    failures = []

    @inlineCallbacks
    def start():
        for name in names or SCENARIOS:
            print(name, flush=True)
            os.environ["CHANNELS1_SITE_PREFIX"] = f"{PREFIX}-{name.replace('_', '-')}"
            try:
                yield inlineCallbacks(SCENARIOS[name])(reactor)
            except Exception:
                failures.append(f"{name}: {traceback.format_exc()}")
        try:
            leave_receives_pending()
            yield pause(reactor)
        finally:
            reactor.stop()

    def run(handle_signals):
        reactor.callWhenRunning(start)
        reactor.run(installSignalHandlers=handle_signals)

    if thread_kind == "main":
        run(True)
    else:
        thread = threading.Thread(target=run, args=(False,))
        thread.start()
        thread.join()
    print(*failures, sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(*sys.argv[2:])
    else:
        sys.exit(main())
