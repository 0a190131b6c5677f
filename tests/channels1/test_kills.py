"""Processes of a loaded site are killed and stopped; the site goes on, and nobody cleans up.

8 HTTP clients and 10 websockets keep a daphne, a worker and a four-threaded worker busy. A killed
process is started again, as any supervisor would do it; /dev/shm is left alone. What a worker had
in its hands when it died may be lost, one message for each of its threads, and nothing else.
"""

import random

import pytest

from .load import HTTP_TIMEOUT_S, Load
from .running_site import DEADLINE_S, Site, SiteProcess, wait_until_working

# Of a daphne whose workers live: nothing is lost then, so nothing need be given up soon.
PATIENTLY = (
    *("--http-timeout", f"{DEADLINE_S:.0f}"),
    *("--websocket_connect_timeout", f"{DEADLINE_S:.0f}"),
)


def run_it(site: Site, *daphne_arguments: str) -> dict[int, SiteProcess]:
    """Run the site; return its workers by their number of threads."""
    site.start_daphne(*daphne_arguments)
    started = {threads: site.start_worker(threads) for threads in (1, 4)}
    for worker in started.values():
        wait_until_working(worker)
    site.wait_until_answering()
    return started


@pytest.fixture
def workers(empty_site: Site) -> dict[int, SiteProcess]:
    """Run the site with a daphne that gives up soon what a killed worker had in its hands."""
    return run_it(empty_site, "--http-timeout", str(HTTP_TIMEOUT_S))


def choose_moments() -> random.Random:
    """Return a source of random numbers, its seed in the output of a failed test."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def kill_workers(site: Site, workers: dict[int, SiteProcess], times: int) -> None:
    moments = choose_moments()
    in_their_hands = 0
    with Load(site).running() as load:
        load.wait_for_answers(50)
        for number in range(times):
            threads = (1, 4)[number % 2]
            load.wait_for_answers(moments.randrange(40))
            workers[threads].kill()
            in_their_hands += threads
            workers[threads] = site.start_worker(threads)
            load.wait_for_answers(50)
            wait_until_working(workers[threads])
    assert load.failures == []
    assert load.lost.total() <= in_their_hands, load.lost


def stop_workers(site: Site, workers: dict[int, SiteProcess], times: int) -> None:
    moments = choose_moments()
    swallowed = 0
    with Load(site).running() as load:
        load.wait_for_answers(50)
        for _ in range(times):
            load.wait_for_answers(moments.randrange(40))
            workers[4].ask_to_end()
            successor = site.start_worker(4)
            assert workers[4].exit_status() == 0
            swallowed += workers[4].output().count("\nSystemExit: 0")
            workers[4] = successor
            load.wait_for_answers(50)
            wait_until_working(successor)
    assert load.failures == []
    # Channels ends a worker with threads at once, whatever they are doing (or, see exit_status(),
    # loses what its main thread did, and is asked again).
    assert load.lost.total() <= 4 * times + swallowed, load.lost


def kill_daphne(site: Site, times: int) -> None:
    moments = choose_moments()
    run_it(site, *PATIENTLY)
    daphne = site.processes[0]
    with Load(site).running() as load:
        for _ in range(times):
            load.wait_for_answers(50 + moments.randrange(40))
            with load.outage():
                daphne.kill()
                daphne = site.start_daphne(*PATIENTLY)
                site.wait_until_answering()
            load.wait_for_answers(200)
    assert load.failures == []
    assert load.lost.total() == 0, load.lost


def test_killed_workers(empty_site: Site, workers: dict[int, SiteProcess]) -> None:
    """Twenty times a worker is killed under load, and only what it had in its hands is lost."""
    kill_workers(empty_site, workers, 20)


def test_stopped_workers(empty_site: Site, workers: dict[int, SiteProcess]) -> None:
    """Twenty times a four-threaded worker is stopped under load, and ends with status 0."""
    stop_workers(empty_site, workers, 20)


def test_killed_daphne(empty_site: Site) -> None:
    """Three times daphne is killed under load, and a new one serves everybody at once."""
    kill_daphne(empty_site, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_workers_for_long(empty_site: Site, workers: dict[int, SiteProcess]) -> None:
    """A hundred times a worker is killed under load."""
    kill_workers(empty_site, workers, 100)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stopped_workers_for_long(empty_site: Site, workers: dict[int, SiteProcess]) -> None:
    """A hundred times a four-threaded worker is stopped under load."""
    stop_workers(empty_site, workers, 100)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_daphne_for_long(empty_site: Site) -> None:
    """Twenty times daphne is killed under load."""
    kill_daphne(empty_site, 20)
