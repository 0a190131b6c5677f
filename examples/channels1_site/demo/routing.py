"""Which consumer reads which channel."""

from channels.routing import route

from demo import consumers

channel_routing = [
    route("websocket.connect", consumers.echo_connect, path=r"^/echo$"),
    route("websocket.receive", consumers.echo_receive, path=r"^/echo$"),
    route("websocket.connect", consumers.room_connect, path=r"^/rooms/(?P<room>[\w.-]+)$"),
    route("websocket.receive", consumers.room_receive, path=r"^/rooms/(?P<room>[\w.-]+)$"),
    route("websocket.disconnect", consumers.room_disconnect, path=r"^/rooms/(?P<room>[\w.-]+)$"),
    route("websocket.connect", consumers.ordered_connect, path=r"^/ordered$"),
    route("websocket.receive", consumers.ordered_receive, path=r"^/ordered$"),
    route("websocket.connect", consumers.denied_connect, path=r"^/denied$"),
    route("background.shout", consumers.shout),
    # Sockets without something to do at the end still send their disconnect.
    route("websocket.disconnect", consumers.nothing),
]
