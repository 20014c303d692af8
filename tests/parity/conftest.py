def pytest_ignore_collect(config):
    """Peer libraries are imported only where their tests are asked for: pytest -m parity."""
    return "parity" not in config.option.markexpr.replace("not parity", "") or None
