"""What `daphne demo.asgi:channel_layer` imports."""

import os

from channels.asgi import get_channel_layer

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demo.settings")
channel_layer = get_channel_layer()
