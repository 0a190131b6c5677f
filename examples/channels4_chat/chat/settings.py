"""Settings: everything is Django's default but ``CHANNEL_LAYERS``."""

import os

SECRET_KEY = "an example has no secrets"
DEBUG = False
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "chat.urls"
ASGI_APPLICATION = "chat.asgi.application"
INSTALLED_APPS = ["channels", "chat"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
USE_TZ = True

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_ipc.channels.IPCChannelLayer",
        "CONFIG": {"prefix": os.environ.get("CHAT_PREFIX", "channels4-chat")},
    }
}

# Told by run.py: which of the processes this is, and where all of them listen.
CHAT_PROCESS = int(os.environ.get("CHAT_PROCESS", "1"))
CHAT_PORTS = [int(port) for port in os.environ.get("CHAT_PORTS", "8001").split(",")]
