"""`pytest --nbval` as conftest.py sets it up: green on cleaned notebooks, red on a wrong output or when too little is compared."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent


def printing(text, stored, **metadata):
    """A cell as nbdev_clean leaves it: an output, but no execution count."""
    return new_code_cell(f"print({text!r})", outputs=[new_output("stream", name="stdout", text=stored + "\n")], metadata=metadata)


def figure():
    output = new_output("display_data", data={"text/plain": "<Figure size 640x480 with 1 Axes>", "image/png": ""})
    return new_code_cell("assert False", outputs=[output], metadata={"tags": ["nbval-skip"]})


def run(folder, cells):
    """The exit code and the report of plain `pytest --nbval` over one notebook of these cells."""
    for name in ("conftest.py", "pyproject.toml", "tests/nbval_sanitize.cfg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "nbs").mkdir()
    for number, cell in enumerate(cells):
        cell.id = f"cell{number}"
    nbformat.write(new_notebook(cells=cells), folder / "nbs" / "00_one.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "-v", "--color=no", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout


def outcomes(report):
    return re.findall(r"::Cell \d+ (PASSED|FAILED|SKIPPED)", report)


TAGS = {"tags": ["nbval-ignore-output"]}


def test_green_where_all_is_right(tmp_path):
    cells = [
        printing("a", "a"),
        new_code_cell("x = 1"),
        printing("0.12345678", "0.12345999"),  # the last digits of another machine
        new_code_cell("#| eval: false\nassert False"),
        figure(),  # a bare figure counts neither way
        printing("b", "b"),
        printing("1", "2", **TAGS),
    ]
    code, report = run(tmp_path, cells)
    assert code == 0, report
    assert outcomes(report) == ["PASSED", "PASSED", "PASSED", "SKIPPED", "SKIPPED", "PASSED", "PASSED"]
    assert "7 cells in 1 notebooks; of those that print more than a bare figure 3 compared (75%), 1 ignored; 2 skipped" in report


def test_red_where_something_is_wrong(tmp_path):
    cells = [
        printing("a", "a"),
        printing("a", "b"),
        new_code_cell("print('not stored')"),
        new_code_cell("assert False"),
        printing("0.1251", "0.1263"),
        printing("stored twice", "stored twice\nstored twice"),
    ]
    code, report = run(tmp_path, cells)
    assert code == 1, report
    assert outcomes(report) == ["PASSED"] + ["FAILED"] * 5


def test_red_where_too_little_is_compared(tmp_path):
    code, report = run(tmp_path, [printing("a", "a"), printing("b", "b"), printing("1", "2", **TAGS)])
    assert outcomes(report) == ["PASSED"] * 3
    assert "FAILED: less than 70% compared" in report
    assert code == 1
