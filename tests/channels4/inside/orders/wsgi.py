"""The same views, for a server that knows no event loop."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "orders.settings")
application = get_wsgi_application()

from .preload import use_the_layer  # noqa: E402

use_the_layer()
