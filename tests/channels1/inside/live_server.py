# mypy: ignore-errors
# (runs in the Channels 1 environment, whose packages the type checker does not see)
# ruff: noqa: PT009
# (the suites of the stack are unittest's, and so is this one; it has no pytest)
"""A site's own tests with ChannelLiveServerTestCase: layers built before a fork and after it.

The test case builds a layer and flushes it, then forks a daphne and a worker, which build theirs.
"""

import json
import sys
import urllib.request

import django

django.setup()

from channels.test.liveserver import ChannelLiveServerTestCase  # noqa: E402
from django.test.runner import DiscoverRunner  # noqa: E402


class LiveServerTests(ChannelLiveServerTestCase):
    """Requests from outside, through both processes."""

    worker_threads = 4

    def fetch(self, path, **kwargs):
        """Return the body of an answer."""
        request = urllib.request.Request(self.live_server_url + path, **kwargs)
        return urllib.request.urlopen(request, timeout=30).read()

    def test_request(self):
        """A request is answered."""
        self.assertEqual(self.fetch("/"), b"hello\n")

    def test_body(self):
        """A body of 2 MB arrives."""
        answer = json.loads(self.fetch("/request/body", data=b"x" * 2_000_000))
        self.assertEqual(answer["body_bytes"], 2_000_000)


if __name__ == "__main__":
    runner = DiscoverRunner(interactive=False, verbosity=2)
    suite = runner.test_loader.loadTestsFromTestCase(LiveServerTests)
    runner.build_suite = lambda *args, **kwargs: suite
    sys.exit(bool(runner.run_tests([])))
