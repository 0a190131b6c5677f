"""``asgi_ipc``."""
