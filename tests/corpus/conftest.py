"""What all tests of runs share."""
import sys
from types import ModuleType

import pytest


@pytest.fixture(autouse=True)
def workers_import_no_pytest(monkeypatch):
    """Spawned workers import the main program, which is pytest: it takes longer than ours."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
