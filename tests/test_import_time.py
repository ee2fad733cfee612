"""The package and its command start quickly: what is heavy is imported where it is used."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"matplotlib", "seaborn", "torchmetrics", "sklearn", "scipy", "pandas", "cv2", "pytorch_grad_cam", "kornia", "IPython", "nbdev", "fastcore"}
HELP = """
import contextlib, io, sys
from cucn_nb.cli import main
sys.argv = ["cucn", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main()
"""


def loaded_by(code):
    """The top-level packages that a fresh interpreter holds after the code."""
    code += "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())


def seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return time.perf_counter() - start


def test_importing_the_package_imports_nothing_heavy():
    assert not loaded_by("import cucn_nb") & {*HEAVY, "torch", "torchvision", "numpy"}


def test_importing_the_package_takes_no_time():
    bare = min(seconds("pass") for _ in range(5))
    assert min(seconds("import cucn_nb") for _ in range(5)) - bare < 0.3


@pytest.mark.skipif(importlib.util.find_spec("cucn_nb.cli") is None, reason="there is no command yet")
@pytest.mark.parametrize("code", ["import cucn_nb.cli", HELP], ids=["import", "help"])
def test_the_command_imports_what_is_heavy_only_when_used(code):
    assert not loaded_by(code) & HEAVY
