"""Copies of the repository and installations of it, as its users have them."""
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Folders whose files are installed.
PACKAGES = ["", "checkpoint", "circuits", "corpus", "cuda", "inference"]


def product_files() -> list[Path]:
    """Return the Python files of the package, relative to the root."""
    return sorted(path.relative_to(ROOT) for folder in PACKAGES
                  for path in (ROOT / folder).glob("*.py"))


def copy_repository(folder):
    """Copy the repository as a subtree or submodule brings it, but for the tests.

    What is compiled comes along, since the files keep their times.
    """
    left_out = shutil.ignore_patterns(
        ".*", "*.pyc.*", "build", "dist", "*.egg-info", "work", "tests"
    )
    shutil.copytree(ROOT, folder, ignore=left_out)
    return folder


def install(source, target):
    """Install into a folder without a network, with the setuptools of this environment."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *options, "--target", target, source],
        capture_output=True, text=True, timeout=100, check=False,
    )
    assert done.returncode == 0, done.stderr
