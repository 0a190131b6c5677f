"""Settings. Whatever a test, a benchmark or run.py varies comes from the environment."""

import json
import os
import tempfile
from pathlib import Path

DATA_DIRECTORY = Path(
    os.environ.get("CHANNELS1_SITE_DATA", os.path.join(tempfile.gettempdir(), "channels1_site"))
)
(DATA_DIRECTORY / "sessions").mkdir(parents=True, exist_ok=True)

# This is the part that a site changes to use the layer. Every CONFIG entry is optional.
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": os.environ.get("CHANNELS1_SITE_BACKEND", "asgi_ipc.IPCChannelLayer"),
        "ROUTING": "demo.routing.channel_routing",
        "CONFIG": {
            "prefix": os.environ.get("CHANNELS1_SITE_PREFIX", "channels1-site"),
            **json.loads(os.environ.get("CHANNELS1_SITE_CONFIG", "{}")),
        },
        # Used by ChannelLiveServerTestCase.
        "TEST_CONFIG": {
            "prefix": os.environ.get("CHANNELS1_SITE_PREFIX", "channels1-site") + "-test",
        },
    },
}

SECRET_KEY = "an example has no secrets"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "demo.urls"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "channels",
    "channels.delay",
]
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
TEMPLATES: list = []
TIME_ZONE = "UTC"
USE_TZ = True
# The default is the console, and Django 1.11 formats tracebacks of 500s with it.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django.request": {"handlers": ["console"], "level": "ERROR"}},
}

# Only `manage.py rundelay` writes to the database.
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(DATA_DIRECTORY / "site.sqlite3"),
        "TEST": {"NAME": str(DATA_DIRECTORY / "test.sqlite3")},
    }
}

# Sessions carry the order of messages between processes (enforce_ordering), so they must be
# shared and atomic: files are replaced by rename.
SESSION_ENGINE = "django.contrib.sessions.backends.file"
SESSION_FILE_PATH = str(DATA_DIRECTORY / "sessions")
