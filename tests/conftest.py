import os

# The default tests use tiny matrices, for which BLAS threads only cost time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from copies import copy_repository, install
from hypothesis import HealthCheck, settings

# Tests do not depend on time, so a busy machine must not fail them.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The folder into which pip has installed the repository."""
    source = copy_repository(tmp_path_factory.mktemp("source") / "checkout")
    target = tmp_path_factory.mktemp("site-packages")
    install(source, target)
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
