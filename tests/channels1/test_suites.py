"""The suites of the stack: asgiref's and Daphne's own, and Channels' in words of ours."""

from .conftest import RunInside


def test_conformance_of_asgiref(run_inside: RunInside) -> None:
    """The layer passes asgiref 1.1.2's ConformanceTestCase without one skipped test."""
    output = run_inside("conformance.py")
    assert "\nOK\n" in output
    assert "Ran 18 tests" in output


def test_suite_of_daphne(run_inside: RunInside) -> None:
    """Daphne 1.4.2's own suite passes with the layer in place of the in-memory one."""
    output = run_inside("daphne_suite.py")
    assert "\nOK\n" in output


def test_what_channels_does_with_a_layer(run_inside: RunInside) -> None:
    """Channels' own classes do with the layer what its documentation says."""
    output = run_inside("channels_suite.py")
    assert "\nOK\n" in output


def test_live_server_test_case(run_inside: RunInside) -> None:
    """A site's tests with ChannelLiveServerTestCase pass, which forks behind the layer's back."""
    output = run_inside("live_server.py")
    assert "Ran 2 tests" in output


def test_signal_handlers_that_raise(run_inside: RunInside) -> None:
    """A handler that raises at any moment of a blocking receive neither hangs nor breaks it."""
    run_inside("signals.py")
