import os

# The default tests use tiny matrices: BLAS threads would only fight with their neighbours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from copies import copy_repository, install
from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail: tests say nothing about seconds.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The folder where pip has installed the repository."""
    source = copy_repository(tmp_path_factory.mktemp("source") / "checkout")
    target = tmp_path_factory.mktemp("site-packages")
    install(source, target)
    return target


class RootIsNoPackageOfTests:
    """The root's __init__.py is the package's: pytest must not import it by its folder's name.

    That fails where the folder's name is no Python name, as in an unpacked gpt2_np-main.zip.
    """

    @staticmethod
    def pytest_collect_directory(path, parent):
        is_root = path == parent.config.rootpath
        return pytest.Dir.from_parent(parent, path=path) if is_root else None


def pytest_configure(config):
    config.pluginmanager.register(RootIsNoPackageOfTests)
