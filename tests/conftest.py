"""What several tests use: a script as a module, the built book, and a browser to read it in."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def load():
    """Loads a script of tools/ or book/_ext by its path, as a module."""
    return _load


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of the strictly built book; tools/check.py, which has just built it, names it, or else it is built here."""
    if "BUILT_BOOK" in os.environ:
        return Path(os.environ["BUILT_BOOK"])
    folder = tmp_path_factory.mktemp("book")
    command = [sys.executable, ROOT / "tools" / "build_book.py", "--strict", "--output", folder]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"the book does not build\n{done.stdout[-4000:]}"
    return folder / "_build"


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window. Tests that need one are skipped where there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on PATH (on Debian: apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("the package playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        yield chromium
        chromium.close()
