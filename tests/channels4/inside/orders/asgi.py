"""HTTP to Django, websockets and tasks to the consumers."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "orders.settings")
django_application = get_asgi_application()

from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

from .consumers import Feed, Shipping  # noqa: E402
from .preload import use_the_layer  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": URLRouter([path("feed/", Feed.as_asgi())]),
        "channel": ChannelNameRouter({"shipping": Shipping.as_asgi()}),
    }
)
use_the_layer()
