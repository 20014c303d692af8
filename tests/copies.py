"""The project as others get it: a copy of the repository, and an installation."""
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copy_repository(folder):
    """What a subtree or submodule brings: the tracked files, the embedded model among them."""
    caches = shutil.ignore_patterns(
        ".*", "__pycache__", "build", "dist", "*.egg-info", "work", "tests"
    )
    shutil.copytree(ROOT, folder, ignore=caches)
    return folder


def install(source, target):
    """pip install into a folder, without a network, built with the setuptools at hand."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *options, "--target", target, source],
        capture_output=True, text=True, timeout=100, check=False,
    )
    assert done.returncode == 0, done.stderr
