"""`receive_twisted`, on the reactors and in the threads where Daphne 1.4.2 runs."""

import pytest

from .conftest import RunInside
from .running_site import Site


@pytest.mark.parametrize("thread", ["main", "other"])
@pytest.mark.parametrize("reactor", ["epoll", "asyncio", "select"])
def test_receive_twisted(run_inside: RunInside, reactor: str, thread: str) -> None:
    """Every scenario of inside/twisted_reader.py holds, and the process ends by itself."""
    run_inside("twisted_reader.py", reactor, thread, deadline_s=60.0)


def test_daphne_uses_it(empty_site: Site) -> None:
    """An ordinary daphne finds receive_twisted by itself."""
    daphne = empty_site.start_daphne()
    empty_site.start_worker()
    empty_site.wait_until_answering()
    daphne.wait_for_log("Using native Twisted mode on channel layer")


def test_daphne_can_do_without(empty_site: Site) -> None:
    """With --force-sync daphne polls receive() as before, and the site works."""
    daphne = empty_site.start_daphne("--force-sync")
    empty_site.start_worker()
    empty_site.wait_until_answering()
    daphne.wait_for_log("Using busy-loop synchronous mode on channel layer")
