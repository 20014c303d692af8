import functools
import os
import time

# Tests use tiny matrices, for which threads only cost time: those of BLAS, and of PyTorch (OMP).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The tests start many processes, which would each compile the whole package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from copies import copy_repository, install
from hypothesis import HealthCheck, settings

import gpt2_np

# Tests do not depend on time, so a busy machine must not fail them.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow],
                          max_examples=50)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The folder into which pip has installed the repository: one for all workers of xdist."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    target, done = folder / "site-packages", folder / "installation has ended"
    try:
        target.mkdir()
    except FileExistsError:
        while not done.exists():
            time.sleep(0.05)
        return target
    try:
        install(copy_repository(folder / "checkout"), target)
    finally:
        done.touch()
    return target


class RootIsNotATestPackage:
    """A plugin that keeps pytest from importing the root's __init__.py by the folder's name.

    A folder such as gpt2_np-main, unpacked from a zip file, is not a valid name in Python.
    """

    @staticmethod
    def pytest_collect_directory(path, parent):
        is_root = path == parent.config.rootpath
        return pytest.Dir.from_parent(parent, path=path) if is_root else None


def pytest_configure(config):
    config.pluginmanager.register(RootIsNotATestPackage)


# --- pytest -m official ----------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption("--weights", metavar="FOLDER",
                     help="test the weights of this folder, of any official size; download none")


@pytest.fixture(scope="session")
def load_official(request):
    """Return a function that loads an official size, from --weights if it is given."""
    folder = request.config.getoption("--weights")

    @functools.cache
    def load(size):
        model = gpt2_np.load(folder or size, "cpu")
        if model.config != gpt2_np.SIZES[size]:
            pytest.skip(f"--weights has other sizes than {size}")
        return model

    return load


def raised(report):
    """Return the name of the exception that ended a test."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message.partition(":")[0] if crash else ""


def pytest_terminal_summary(terminalreporter):
    """Say in one line whether the weights give the published outputs."""
    counts = {
        kind: sum("official" in getattr(report, "keywords", ())  # a skipped file's has none
                  for report in terminalreporter.getreports(kind))
        for kind in ("passed", "failed", "error", "skipped")
    }
    failed = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
    n_unavailable = sum("official" in report.keywords and raised(report).endswith("DownloadError")
                        for report in failed)
    held, asked = counts["passed"], sum(counts.values()) - counts["skipped"] - n_unavailable
    if asked or n_unavailable:
        verdict = "this is GPT-2" if held == asked else "this is not GPT-2, or not all of it"
        if n_unavailable:
            verdict = (f"{n_unavailable} others could not be downloaded"
                       + (f"; {verdict}" if held < asked else ""))
        terminalreporter.write_line(
            f"{held} of {asked} tests of published outputs hold: {verdict}"
            + f" ({counts['skipped']} were skipped)" * bool(counts["skipped"])
        )
