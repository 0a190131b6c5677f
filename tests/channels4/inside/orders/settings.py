"""Settings; the test says under which prefix."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "a test has no secrets"
DEBUG = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "orders.urls"
ASGI_APPLICATION = "orders.asgi.application"
WSGI_APPLICATION = "orders.wsgi.application"
INSTALLED_APPS = [
    "daphne",  # its runserver
    "channels",
    "orders",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.staticfiles",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "db.sqlite3",
        # In memory, the default for tests, it would belong to one process.
        "TEST": {"NAME": str(BASE_DIR / "test.sqlite3")},
    }
}
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_ipc.channels.IPCChannelLayer",
        "CONFIG": {
            "prefix": os.environ["SITE_PREFIX"],
            "message_memory": 8 << 20,
            "group_memory": 4 << 20,
        },
    }
}
