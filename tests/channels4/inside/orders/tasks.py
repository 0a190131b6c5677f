"""Celery: ``celery -A orders.tasks worker``."""

import os

import django
from asgiref.sync import async_to_sync
from celery import Celery
from channels.layers import get_channel_layer

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "orders.settings")
django.setup()

from .preload import use_the_layer  # noqa: E402
from .views import left_by  # noqa: E402

SPOOL = os.environ["SITE_SPOOL"]
app = Celery("orders", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": SPOOL,
        "data_folder_out": SPOOL,
        "control_folder": f"{SPOOL}/control",
        "polling_interval": 0.05,
    },
    worker_hijack_root_logger=False,
)
use_the_layer()


@app.task
def announce(n):
    """Say it twice, and say who did."""
    layer = get_channel_layer()
    layer.sync.group_send("orders", {"n": n, "pid": os.getpid(), "how": "blocking"})
    async_to_sync(layer.group_send)("orders", {"n": n, "pid": os.getpid(), "how": "in a loop"})


@app.task
def load(count):
    """Report what many uses left behind."""
    get_channel_layer().sync.send("left", {"left": left_by(count), "pid": os.getpid()})
