# mypy: ignore-errors
# (runs in the Channels 1 environment, whose packages the type checker does not see)
# ruff: noqa: D102, PT009, PT027, RUF012
# (the suites of the stack are unittest's, and so is this one; it has no pytest)
"""What Channels 1.1.8 does with a layer, through Channels' own classes.

Channels' suite is not part of its package, so these are tests of our own for the same ground:
Channel, Group, Message, Worker, WorkerGroup, request bodies, responses, sessions, ordering,
delayed messages, model bindings, and asgiref's WSGI adapter.
"""

import collections
import gc
import json
import logging
import os
import pickle
import threading
import time
import unittest
import warnings
from unittest import mock

import django

django.setup()

import asgiref.wsgi  # noqa: E402
from asgiref.base_layer import BaseChannelLayer  # noqa: E402
from channels import Channel, Group, channel_layers  # noqa: E402
from channels.asgi import ChannelLayerWrapper  # noqa: E402
from channels.binding.websockets import WebsocketBinding  # noqa: E402
from channels.delay.models import DelayedMessage  # noqa: E402
from channels.delay.worker import Worker as DelayWorker  # noqa: E402
from channels.exceptions import (  # noqa: E402
    ConsumeLater,
    DenyConnection,
    RequestAborted,
    RequestTimeout,
)
from channels.handler import AsgiRequest, ViewConsumer  # noqa: E402
from channels.message import Message, PendingMessageStore  # noqa: E402
from channels.routing import route  # noqa: E402
from channels.sessions import channel_session, enforce_ordering, http_session  # noqa: E402
from channels.signals import consumer_finished, consumer_started  # noqa: E402
from channels.worker import Worker, WorkerGroup  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.utils.safestring import mark_safe  # noqa: E402

import asgi_ipc  # noqa: E402

DEADLINE_S = 20.0
logging.getLogger("django.channels").setLevel(logging.CRITICAL)


def poll_until(condition, what):
    """Wait for a condition."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {DEADLINE_S:g} s: {what}")
        time.sleep(0.005)


class LayerTestCase(unittest.TestCase):
    """A layer of its own for each test, as the default one of Channels."""

    config = {}
    number = 0

    def setUp(self):
        LayerTestCase.number += 1
        prefix = f"{os.environ['CHANNELS1_SITE_PREFIX']}-{self.number}"
        config = {"prefix": prefix, "block_timeout": 0.05, **self.config}
        self.raw = asgi_ipc.IPCChannelLayer(**config)
        self.layer = ChannelLayerWrapper(self.raw, "default", [])
        old = channel_layers.set("default", self.layer)
        self.addCleanup(channel_layers.set, "default", old)

    def route(self, *routes):
        """Give the layer a routing."""
        self.layer = ChannelLayerWrapper(self.raw, "default", list(routes))
        channel_layers.set("default", self.layer)

    def work(self, until, worker_class=Worker, **options):
        """Run a worker in a thread until the condition holds."""
        worker = worker_class(self.layer, signal_handlers=False, **options)
        failures = []

        def run():
            try:
                worker.run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            poll_until(lambda: failures or until(), f"{until} with {worker_class.__name__}")
        finally:
            for member in (worker, *getattr(worker, "workers", ())):
                member.termed = True
            for member in (thread, *getattr(worker, "threads", ())):
                member.join(DEADLINE_S)
                self.assertFalse(member.is_alive(), "the worker does not stop")
        self.assertEqual(failures, [])

    def receive(self, *names):
        """Receive without blocking, as Channels does it."""
        return self.layer.receive_many(list(names))

    def receive_all(self, name):
        """Receive everything that is there; return the messages."""
        messages = []
        while True:
            channel, message = self.receive(name)
            if channel is None:
                return messages
            messages.append(message)

    def message(self, content, channel="test", reply="reply!a"):
        """Build what a worker gives a consumer."""
        return Message({"reply_channel": reply, **content}, channel, self.layer)


class ChannelTests(LayerTestCase):
    """Channel and Message."""

    def test_send_outside_a_consumer(self):
        """A send outside a consumer goes out at once, its content copied."""
        content = {"list": [1, {"two": b"2"}], "safe": mark_safe("<b>")}
        Channel("work").send(content)
        content["list"].append("later")
        channel, message = self.receive("work")
        self.assertEqual(channel, "work")
        self.assertEqual(message, {"list": [1, {"two": b"2"}], "safe": "<b>"})
        self.assertIs(type(message["safe"]), str)
        message["mutable"] = True

    def test_name_as_bytes(self):
        """Channels decodes a name given as bytes."""
        Channel(b"work").send({})
        self.assertEqual(self.receive("work"), ("work", {}))

    def test_only_dicts(self):
        """Anything but a dict is refused."""
        with self.assertRaises(TypeError):
            Channel("work").send(["a list"])
        with self.assertRaises(AssertionError):
            self.layer.send("work", ["a list"])

    def test_sends_wait_for_the_end_of_the_consumer(self):
        """Inside a consumer only `immediately` goes out before its end, and order is kept."""
        seen = []

        def consumer(message):
            Channel("out").send({"n": 1})
            Channel("out").send({"n": 2})
            Channel("out").send({"n": 0}, immediately=True)
            seen.extend(self.receive_all("out"))

        self.route(route("test", consumer))
        self.layer.send("test", {})
        self.work(lambda: seen)
        self.assertEqual(seen, [{"n": 0}])
        self.assertEqual(self.receive_all("out"), [{"n": 1}, {"n": 2}])

    def test_receive_many_is_quiet(self):
        """The worker's entry point warns nobody at each call."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.assertEqual(self.receive("nothing"), (None, None))


class FullChannelTests(LayerTestCase):
    """ChannelFull, as Channels meets it."""

    config = {"capacity": 2}

    def test_seen_through_the_instance(self):
        """The exception that is raised is the one on the instance."""
        self.layer.send("full", {})
        self.layer.send("full", {})
        with self.assertRaises(self.layer.ChannelFull):
            self.layer.send("full", {})
        with self.assertRaises(self.layer.ChannelFull):
            raise self.layer.ChannelFull("any", "arguments")
        with self.assertRaises(self.layer.MessageTooLarge):
            raise self.layer.MessageTooLarge()

    def test_deferred_sends_are_retried(self):
        """A deferred send into a full channel waits for room."""
        received = []

        def read_when_refused():
            refused = "channel_full_count"
            poll_until(lambda: self.raw.channel_statistics("full")[refused], "a refused send")
            received.extend(self.receive("full")[1] for _ in range(2))

        reader = threading.Thread(target=read_when_refused)

        def consumer(message):
            for number in range(3):
                Channel("full").send({"n": number})
            reader.start()

        self.route(route("test", consumer))
        self.layer.send("test", {})
        self.work(lambda: len(received) == 2 and self.raw.receive(["full"])[0])
        reader.join(DEADLINE_S)
        self.assertEqual(received, [{"n": 0}, {"n": 1}])

    def test_deferred_sends_give_up(self):
        """Channels' own error names the channel when there is no room for too long."""
        consumer_started.send(sender=None, environ={})
        for number in range(3):
            Channel("full").send({"n": number})
        with (
            mock.patch.object(PendingMessageStore, "retry_time", 0.05),
            mock.patch.object(PendingMessageStore, "retry_interval", 0.01),
            self.assertRaisesRegex(RuntimeError, "full after retrying"),
        ):
            consumer_finished.send(sender=None)
        del PendingMessageStore.threadlocal.messages

    def test_response_larger_than_the_capacity(self):
        """A response of more messages than fit waits for its reader and stays in order."""
        content = {"method": "GET", "path": "/download"}
        chunks = []

        def read():
            while not chunks or chunks[-1].get("more_content"):
                _, chunk = self.layer.receive(["reply!"], block=True)
                if chunk:
                    chunks.append(chunk)

        reader = threading.Thread(target=read)
        reader.start()
        ViewConsumer()(self.message(content))
        reader.join(DEADLINE_S)
        self.assertEqual(chunks[0]["status"], 200)
        self.assertEqual(sum(len(chunk["content"]) for chunk in chunks), 5 * 1024 * 1024)
        self.assertEqual(len(chunks), 10)

    def test_group_never_full(self):
        """A group send to a full member is silent, and the others get it."""
        Group("g").add("slow")
        Group("g").add("fast")
        for number in range(4):
            Group("g").send({"n": number})
            self.assertEqual(self.receive("fast")[1], {"n": number})
        self.assertEqual(self.receive_all("slow"), [{"n": 0}, {"n": 1}])

    def test_requeueing_waits_for_room(self):
        """ConsumeLater puts a message back even when its channel is full for a moment."""
        attempts = []

        def consumer(message):
            attempts.append(message.content.get("__retries__", 0))
            if len(attempts) == 1:
                self.raw.send("test", {"other": 1})
                self.raw.send("test", {"other": 2})
                threading.Timer(0.1, lambda: self.receive("test")).start()
                raise ConsumeLater()

        self.route(route("test", consumer))
        self.layer.send("test", {})
        self.work(lambda: 1 in attempts)


class GroupTests(LayerTestCase):
    """Group."""

    def test_membership(self):
        """Members get a group's messages, strangers and those who left do not."""
        group = Group("g")
        for name in ("a", "b?x", "c!y", "c!z"):
            group.add(name)
        group.add(Channel("a"))
        group.discard("c!z")
        group.discard("never.there")
        self.assertEqual(set(self.layer.group_channels("g")), {"a", "b?x", "c!y"})
        group.send({"text": "hi"})
        self.assertEqual(self.receive("a"), ("a", {"text": "hi"}))
        self.assertEqual(self.receive("b?x"), ("b?x", {"text": "hi"}))
        self.assertEqual(self.receive("c!"), ("c!y", {"text": "hi"}))
        self.assertEqual(self.receive("a", "b?x", "c!"), (None, None))
        self.assertEqual(set(self.layer.group_channels("unknown")), set())

    def test_members_do_not_share_a_message(self):
        """Each member may change what it got."""
        for name in ("a", "b"):
            Group("g").add(name)
        Group("g").send({"list": []})
        self.receive("a")[1]["list"].append("changed")
        self.assertEqual(self.receive("b")[1], {"list": []})

    def test_send_waits_for_the_end_of_the_consumer(self):
        """A group send inside a consumer goes out at its end, as a channel send does."""
        seen = []

        def consumer(message):
            Group("g").add("member")
            Group("g").send({"n": 1})
            seen.append(self.receive("member"))

        self.route(route("test", consumer))
        self.layer.send("test", {})
        self.work(lambda: seen)
        self.assertEqual(seen, [(None, None)])
        self.assertEqual(self.receive("member"), ("member", {"n": 1}))


class WorkerTests(LayerTestCase):
    """Worker and WorkerGroup."""

    def test_runs_the_matching_consumer(self):
        """Messages go to the consumer of their channel, filters and arguments applied."""
        seen = []
        self.route(
            route("one", lambda message: seen.append("one")),
            route("two", lambda message, x: seen.append(f"two {x}"), path=r"^/(?P<x>\w+)$"),
            route("two", lambda message: seen.append("two")),
        )
        self.layer.send("one", {})
        self.work(lambda: len(seen) == 1)
        self.layer.send("two", {"path": "/abc"})
        self.work(lambda: len(seen) == 2)
        self.layer.send("two", {"path": "?"})
        self.work(lambda: len(seen) == 3)
        self.assertEqual(seen, ["one", "two abc", "two"])

    def test_busy_channel_does_not_starve_a_quiet_one(self):
        """A message of a quiet channel is read while a busy one never runs empty."""
        seen = []

        def busy(message):
            self.raw.send("busy", {})

        self.route(route("busy", busy), route("quiet", lambda message: seen.append(1)))
        self.layer.send("busy", {})
        self.layer.send("busy", {})
        self.layer.send("quiet", {})
        self.work(lambda: seen)

    def test_consume_later(self):
        """A consumer may put its message back; after ten times Channels drops it."""
        attempts = []

        def consumer(message):
            attempts.append(message.content.get("__retries__", 0))
            raise ConsumeLater()

        self.route(route("test", consumer))
        self.layer.send("test", {"content": "kept"})
        self.work(lambda: len(attempts) == 11)
        self.assertEqual(attempts, list(range(11)))
        self.assertEqual(self.receive("test"), (None, None))

    def test_failing_consumer(self):
        """A consumer that raises does not end its worker."""
        seen = []

        def consumer(message):
            seen.append(1)
            raise RuntimeError("this consumer always fails")

        self.route(route("test", consumer))
        for _ in range(3):
            self.layer.send("test", {})
        self.work(lambda: len(seen) == 3)

    def test_denied_connection(self):
        """DenyConnection closes the socket."""

        def consumer(message):
            raise DenyConnection()

        self.route(route("websocket.connect", consumer))
        self.layer.send("websocket.connect", {"reply_channel": "reply!a"})
        replies = []
        self.work(lambda: replies or replies.extend(self.receive_all("reply!")))
        self.assertEqual(replies, [{"close": True}])

    def test_only_some_channels(self):
        """A worker with filters leaves the other channels alone."""
        seen = []
        self.route(
            route("work.a", lambda message: seen.append("a")),
            route("work.b", lambda message: seen.append("b")),
            route("other", lambda message: seen.append("other")),
        )
        for name in ("other", "work.b", "work.a"):
            self.layer.send(name, {})
        self.work(lambda: seen, only_channels=["work.*"], exclude_channels=["*.b"])
        self.assertEqual(seen, ["a"])

    def test_no_channel_at_all(self):
        """A worker whose filters match nothing idles, and stops when told."""
        self.route(route("test", lambda message: None))
        received = []
        receive = self.raw.receive_many

        def spy(channels, block=False):
            received.append((list(channels), receive(channels, block)))
            return received[-1][1]

        with mock.patch.object(self.raw, "receive_many", spy):
            self.work(lambda: len(received) > 1, only_channels=["nothing.*"])
        self.assertEqual(received[0], ([], (None, None)))

    def test_threads_share_the_work(self):
        """Four threads on one layer object handle every message exactly once."""
        seen = collections.Counter()
        lock = threading.Lock()

        def consumer(message):
            with lock:
                seen[message["n"]] += 1

        self.route(route("test", consumer))

        def send():
            for number in range(500):
                while True:
                    try:
                        self.raw.send("test", {"n": number})
                    except self.raw.ChannelFull:
                        time.sleep(0.001)
                    else:
                        break

        sender = threading.Thread(target=send)
        sender.start()
        self.work(lambda: len(seen) == 500, WorkerGroup, n_threads=4)
        sender.join()
        self.assertEqual(set(seen.values()), {1})


class RequestTests(LayerTestCase):
    """Requests with a body channel, which other interface servers send."""

    def request_message(self, **content):
        """Build an upload whose body comes in messages."""
        self.body_channel = self.layer.new_channel("http.request.body?")
        return self.message(
            {
                "method": "POST",
                "path": "/request/body",
                "body": b"first ",
                "body_channel": self.body_channel,
                "headers": [[b"content-type", b"text/plain"]],
                **content,
            }
        )

    def test_body_in_chunks(self):
        """The chunks are put together in their order."""
        message = self.request_message()
        for number in range(50):
            chunk = {"content": b"%d " % number, "more_content": number < 49}
            self.layer.send(self.body_channel, chunk)
        body = AsgiRequest(message).body
        self.assertEqual(body, b"first " + b"".join(b"%d " % number for number in range(50)))

    def test_body_that_comes_late(self):
        """A request waits for chunks that are not there yet, and answers the whole."""
        message = self.request_message()
        chunk = {"content": b"late", "more_content": False}
        sender = threading.Timer(0.1, self.layer.send, [self.body_channel, chunk])
        sender.start()
        ViewConsumer()(message)
        sender.join()
        answer = json.loads(self.receive("reply!")[1]["content"])
        self.assertEqual(answer["body_bytes"], len(b"first late"))

    def test_closed_body(self):
        """A client that goes away aborts its request."""
        message = self.request_message()
        self.layer.send(self.body_channel, {"closed": True})
        with self.assertRaises(RequestAborted):
            AsgiRequest(message)

    def test_body_that_never_comes(self):
        """A blocking receive comes back often enough for the body timeout to work."""
        message = self.request_message()
        with (
            mock.patch.object(AsgiRequest, "body_receive_timeout", 0.1),
            self.assertRaises(RequestTimeout),
        ):
            AsgiRequest(message)

    def test_wsgi_adapter(self):
        """Asgiref's WSGI adapter sends a request, and answers what comes back.

        Its own reply channel is a `new_channel("http.response!")`, which its own conformance
        suite forbids; a single-reader channel is what works.
        """
        layer = self.raw

        class Adapter(asgiref.wsgi.WsgiToAsgiAdapter):
            def get_reply_channel(self):
                return layer.new_channel("http.response?")

        application = Adapter(layer)
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": mock.Mock(read=lambda *args: b""),
        }

        def answer():
            channel = None
            while channel is None:
                channel, message = self.layer.receive_many(["http.request"], block=True)
            for more in (True, False):
                chunk = {"status": 200, "headers": [("x", "y")]} if more else {}
                chunk |= {"content": b"part ", "more_content": more}
                self.layer.send(message["reply_channel"], chunk)

        worker = threading.Thread(target=answer)
        worker.start()
        started = []
        parts = list(application(environ, lambda *args: started.append(args)))
        worker.join(DEADLINE_S)
        self.assertEqual(b"".join(parts), b"part part ")
        self.assertIn("200", str(started[0][0]))


class SessionTests(LayerTestCase):
    """Sessions and ordering across messages."""

    def test_channel_session(self):
        """What one consumer stores, the next one of the same reply channel finds."""
        seen = []

        @channel_session
        def consumer(message):
            message.channel_session["count"] = message.channel_session.get("count", 0) + 1
            seen.append((message.reply_channel.name, message.channel_session["count"]))

        self.route(route("test", consumer))
        for reply in ("r!a", "r!b", "r!a", "r!a"):
            self.layer.send("test", {"reply_channel": reply})
        self.work(lambda: len(seen) == 4)
        self.assertEqual(seen, [("r!a", 1), ("r!b", 1), ("r!a", 2), ("r!a", 3)])

    def test_enforced_ordering(self):
        """Messages that come in disorder are handled in order, by one worker or by several."""
        seen = []

        @enforce_ordering
        def consumer(message):
            seen.append(message["order"])

        self.route(route("test", consumer))
        for worker_class, options in ((Worker, {}), (WorkerGroup, {"n_threads": 4})):
            reply = f"daphne.response.abcdefghij!{worker_class.__name__}"
            seen.clear()
            # The first one alone, as a socket's connect is: two that create a session at once
            # overwrite each other's, which is a race of Channels and Django.
            self.layer.send("test", {"reply_channel": reply, "order": 0})
            self.work(lambda: seen)
            for order in (5, 3, 1, 4, 2, 7, 6):
                self.layer.send("test", {"reply_channel": reply, "order": order})
            self.work(lambda: len(seen) == 8, worker_class, **options)
            self.assertEqual(seen, list(range(8)))

    def test_http_session(self):
        """A consumer finds the browser's session by its cookie."""
        from django.contrib.sessions.backends.file import SessionStore

        store = SessionStore()
        store["who"] = "me"
        store.save()
        seen = []

        @http_session
        def consumer(message):
            seen.append(message.http_session["who"])

        self.route(route("websocket.connect", consumer))
        cookie = f"sessionid={store.session_key}".encode()
        content = {"reply_channel": "r!a", "path": "/", "headers": [(b"cookie", cookie)]}
        self.layer.send("websocket.connect", content)
        self.work(lambda: seen)
        self.assertEqual(seen, ["me"])


class DatabaseTests(LayerTestCase):
    """Delayed messages and model bindings, which live in the database and speak to the layer."""

    @classmethod
    def setUpClass(cls):
        call_command("migrate", verbosity=0)

    def setUp(self):
        super().setUp()
        DelayedMessage.objects.all().delete()

    def test_delayed_message(self):
        """A delayed message is stored first, and sent when it is due."""
        worker = DelayWorker(self.layer, signal_handlers=False, database_sleep_duration=0.01)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            delayed = {"channel": "later", "content": {"n": 1}, "delay": 50}
            Channel("asgi.delay").send(delayed)
            arrived = []
            poll_until(
                lambda: arrived or arrived.extend(self.receive_all("later")), "the delayed message"
            )
        finally:
            worker.termed = True
            thread.join(DEADLINE_S)
        self.assertEqual(arrived, [{"n": 1}])
        self.assertEqual(DelayedMessage.objects.count(), 0)

    def test_delayed_message_to_a_full_channel(self):
        """Channels keeps a delayed message whose channel is full."""
        for _ in range(self.raw.capacity):
            self.layer.send("full", {})
        message = DelayedMessage(content="{}", channel_name="full", delay=0)
        message.save()
        message.send(channel_layer=self.layer)
        self.assertEqual(DelayedMessage.objects.count(), 1)

    def test_model_binding(self):
        """Saving a bound model tells its group."""

        class Binding(WebsocketBinding):
            model = DelayedMessage
            stream = "delayed"
            fields = ["channel_name"]

            @classmethod
            def group_names(cls, instance):
                return ["watchers"]

            def has_permission(self, user, action, pk):
                return True

        Group("watchers").add("watcher!a")
        message = DelayedMessage(content="{}", channel_name="x", delay=0)
        message.save()
        message.delete()
        actions = [
            json.loads(sent["text"])["payload"]["action"] for sent in self.receive_all("watcher!")
        ]
        self.assertEqual(actions, ["create", "delete"])


class ContractTests(LayerTestCase):
    """What else Channels, Daphne and third parties take for granted."""

    def test_wrapper(self):
        """Channels takes the layer for one that spans processes, and for true."""
        self.assertFalse(self.layer.local_only())
        self.assertTrue(self.raw)
        self.assertIn("IPCChannelLayer", str(self.layer))

    def test_extensions(self):
        """Every extension is announced."""
        wanted = {"groups", "flush", "statistics", "async", "asyncio", "twisted"}
        self.assertLessEqual(wanted, set(self.raw.extensions))

    def test_positional_arguments(self):
        """The constructor takes what 1.4.2 took, in its order."""
        prefix = os.environ["CHANNELS1_SITE_PREFIX"] + "-positional"
        layer = asgi_ipc.IPCChannelLayer(prefix, 5, 6, 7, {"x*": 8}, 2**20, 2**20)
        self.assertEqual((layer.prefix, layer.expiry, layer.group_expiry), (prefix, 5, 6))
        self.assertEqual((layer.capacity, layer.get_capacity("xy")), (7, 8))

    def test_defaults(self):
        """The defaults are those of the original's documentation."""
        layer = self.raw
        self.assertEqual((layer.expiry, layer.group_expiry, layer.capacity), (60, 86400, 100))

    def test_discarded_layers(self):
        """Layers that are thrown away take their descriptors with them."""
        prefix = os.environ["CHANNELS1_SITE_PREFIX"] + "-discarded"
        asgi_ipc.IPCChannelLayer(prefix).send("x", {})
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            asgi_ipc.IPCChannelLayer(prefix).receive(["x"])
        gc.collect()
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)

    def test_empty_list_of_channels(self):
        """Nothing to read is (None, None), blocking or not, whatever kind of nothing."""
        for nothing in ([], (), set(), None, iter(())):
            self.assertEqual(self.raw.receive_many(nothing), (None, None))
        self.assertEqual(self.raw.receive_many([], block=True), (None, None))

    def test_kinds_of_channel_lists(self):
        """Channels may come as a list, tuple, set, dict view or generator."""
        for names in (["a"], ("a",), {"a"}, {"a": 1}.keys(), (name for name in "a")):
            self.raw.send("a", {})
            self.assertEqual(self.raw.receive_many(names), ("a", {}))

    def test_children_of_a_fork(self):
        """A layer that a parent used works in its children, and in the parent afterwards."""
        self.raw.send("before", {"from": "parent"})
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if self.raw.receive_many(["before"])[1] == {"from": "parent"}:
                    self.raw.send("after", {"from": "child"})
                    status = 0
            finally:
                os._exit(status)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(self.receive("after"), ("after", {"from": "child"}))

    def test_it_is_what_applications_ask_for_and_catch(self):
        """Applications know the layer and its errors by asgiref's own classes."""
        self.assertIsInstance(self.raw, BaseChannelLayer)
        self.raw.capacity = 1
        self.raw.send("full", {})
        for kind in (BaseChannelLayer.ChannelFull, self.raw.ChannelFull, asgi_ipc.ChannelFull):
            with self.assertRaises(kind) as caught:
                self.raw.send("full", {})
            again = pickle.loads(pickle.dumps(caught.exception))
            self.assertIsInstance(again, BaseChannelLayer.ChannelFull)
        with self.assertRaises(BaseChannelLayer.MessageTooLarge):
            self.raw.send("large", {"body": bytes(self.raw.message_memory)})

    def test_fork_while_another_thread_waits(self):
        """A child made while a thread waits in receive() works, and so does the waiting thread."""
        received = []

        def wait():
            while not received:
                channel, message = self.raw.receive_many(["to.parent"], block=True)
                if channel:
                    received.append(message)

        waiter = threading.Thread(target=wait)
        waiter.start()
        for number in range(5):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    self.raw.send(f"to.itself.{number}", {})
                    if self.raw.receive_many([f"to.itself.{number}"], block=True)[0]:
                        status = 0
                finally:
                    os._exit(status)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.raw.send("to.parent", {"n": 1})
        waiter.join(DEADLINE_S)
        self.assertEqual(received, [{"n": 1}])


if __name__ == "__main__":
    unittest.main(verbosity=2)
