"""The source archive (sdist) has all files of the repository, and its tests run."""
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
from copies import ROOT

import gpt2_np

BUILD = "import setuptools.build_meta as build; build.build_sdist('dist')"
MADE = {"PKG-INFO"}  # by setuptools, beside gpt2_np.egg-info


def tracked_files():
    if not (ROOT / ".git").exists():
        pytest.skip("git knows which files belong to the repository")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True,
                             check=True)
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The folder into which the archive was unpacked."""
    folder = tmp_path_factory.mktemp("archive")
    for name in tracked_files():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder / "source", check=True, timeout=100,
                   capture_output=True)
    [archive] = (folder / "source" / "dist").iterdir()
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / f"gpt2_np-{gpt2_np.__version__}"


def test_the_archive_has_every_file_of_the_repository_and_no_other(unpacked):
    found = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")
             if path.is_file() and "gpt2_np.egg-info" not in path.parts}
    assert found - MADE == set(tracked_files())


def test_tests_of_the_archive_run(unpacked):
    chosen = ["tests/checkpoint/test_crc32c.py", "tests/test_public_names.py"]
    options = ["-q", "-p", "no:cacheprovider", "--assert=plain"]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, *chosen],
                          cwd=unpacked, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{2,} passed", done.stdout)


def test_the_description_for_an_index_has_no_relative_link_and_its_program_runs(unpacked, capsys):
    headers, _, description = (unpacked / "PKG-INFO").read_text().partition("\n\n")
    assert "\nAuthor: The gpt2_np authors\n" in headers
    assert "\nClassifier: Typing :: Typed\n" in headers
    assert not re.search(r"\]\((?!https?://)", description)
    [program] = re.findall(r"```python\n(.*?)```", description, re.DOTALL)
    exec(program)
    assert len(capsys.readouterr().out) > 40
