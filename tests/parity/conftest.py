import pytest


def pytest_ignore_collect(config):
    """Peer libraries are imported only where their tests are asked for: pytest -m parity."""
    return "parity" not in config.option.markexpr.replace("not parity", "") or None


@pytest.fixture(scope="session")
def ray_settings():
    """One way of Ray for all tests of a process.

    A process that has met a cluster with tokens cannot use one without: its actors never run.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
