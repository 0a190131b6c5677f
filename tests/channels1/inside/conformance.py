# mypy: ignore-errors
# (runs in the Channels 1 environment, whose packages the type checker does not see)
"""asgiref 1.1.2's own conformance suite, against asgi_ipc.IPCChannelLayer."""

import os
import unittest

from asgiref.conformance import ConformanceTestCase

import asgi_ipc


class IPCConformance(ConformanceTestCase):
    """The layer as asgi_ipc 1.4.2's own tests built it."""

    channel_layer = asgi_ipc.IPCChannelLayer(
        prefix=os.environ["CHANNELS1_SITE_PREFIX"], expiry=1, group_expiry=2, capacity=5
    )
    expiry_delay = 1.1
    capacity_limit = 5


del ConformanceTestCase

if __name__ == "__main__":
    unittest.main(verbosity=2)
