# mypy: ignore-errors
# (runs in the Channels 1 environment, whose packages the type checker does not see)
"""The suite that Daphne 1.4.2 ships, with this layer where it has the in-memory one.

The suite is unmodified. Two things around it are adapted: the layer it builds, and Hypothesis,
of which it wants a release of 2017 that no longer runs.
"""

import os
import sys
import unittest
import warnings

import asgiref.inmemory
import hypothesis
from hypothesis import strategies

import asgi_ipc

EXAMPLES = int(os.environ.get("DAPHNE_SUITE_EXAMPLES", "25"))
layers_built = 0


class EmptyLayer(asgi_ipc.IPCChannelLayer):
    """A layer that starts empty each time it is built, as the in-memory one does."""

    def __init__(self):
        global layers_built
        layers_built += 1
        super().__init__(prefix=os.environ["CHANNELS1_SITE_PREFIX"])
        self.flush()

    def receive(self, channels, block=False):
        """Give headers back as tuples, which msgpack makes lists and the suite wants."""
        channel, message = super().receive(channels, block)
        if message is not None and "headers" in message:
            message["headers"] = [tuple(header) for header in message["headers"]]
        return channel, message


def adapt_hypothesis():
    """Drop the arguments that Hypothesis no longer takes."""

    def without_average_size(strategy):
        def call(*args, average_size=None, **kwargs):
            return strategy(*args, **kwargs)

        return call

    for name in ("text", "lists", "binary"):
        setattr(strategies, name, without_average_size(getattr(strategies, name)))

    make = hypothesis.settings.__init__

    def make_without_health_check(self, *args, perform_health_check=None, **kwargs):
        make(self, *args, **kwargs)

    hypothesis.settings.__init__ = make_without_health_check


def main():
    """Run every module of the suite."""
    asgiref.inmemory.ChannelLayer = EmptyLayer
    warnings.simplefilter("ignore")
    adapt_hypothesis()
    import daphne.tests

    hypothesis.settings.register_profile(
        "bounded",
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("bounded")
    modules = sorted(
        name[:-3]
        for name in os.listdir(os.path.dirname(daphne.tests.__file__))
        if name.startswith("test_") and name.endswith(".py")
    )
    suite = unittest.defaultTestLoader.loadTestsFromNames(f"daphne.tests.{m}" for m in modules)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    print(f"{layers_built} layers built for {result.testsRun} tests", *modules, file=sys.stderr)
    return 0 if result.wasSuccessful() and result.testsRun >= 58 and layers_built else 1


if __name__ == "__main__":
    sys.exit(main())
