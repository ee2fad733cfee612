"""Every check of the repository, each run to its end; fails with a list of those that failed. Needs no network.

    python tools/check.py               everything (`make test`)
    python tools/check.py export ruff   only these
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent  # the tools of this environment, whatever PATH says
ENVIRONMENT = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}


def run(*command: str, cwd: Path = ROOT) -> bool:
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, stdin=subprocess.DEVNULL).returncode == 0


def project_copy(folder: Path, *parts: str) -> Path:
    """A copy of the nbdev project in an empty folder: settings, and of the rest only the parts asked for."""
    for name in ("settings.ini", "pyproject.toml", *parts):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_build"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob(pattern)) if "__pycache__" not in path.parts}


def notebooks(folder: Path) -> dict[str, bytes]:
    return {f"{folder.name}/{path.name}": path.read_bytes() for path in sorted(folder.glob("*.ipynb"))}


def same(found: dict[str, bytes], expected: dict[str, bytes], remedy: str) -> bool:
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    for name in wrong:
        state = "should not be there" if name not in expected else "is missing" if name not in found else "differs"
        print(f"  {name} {state}: {remedy}")
    return not wrong


def export() -> bool:
    """The package equals what a fresh export of the notebooks gives: no module edited, missing or left over."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = project_copy(Path(temporary), "nbs")
        return run("nbdev_export", cwd=copy) and same(files(ROOT / "cucn_nb", "*.py"), files(copy / "cucn_nb", "*.py"), "run nbdev_export")


def clean() -> bool:
    """nbdev_clean has nothing to do, and it keeps tags."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = project_copy(Path(temporary), "nbs", "book")
        probe = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", metadata={"tags": ["nbval-skip"], "collapsed": True})])
        nbformat.write(probe, copy / "nbs" / "probe.ipynb")
        done = all(run("nbdev_clean", "--fname", folder, cwd=copy) for folder in ("nbs", "book"))
        kept = nbformat.read(copy / "nbs" / "probe.ipynb", as_version=4).cells[0].metadata
        (copy / "nbs" / "probe.ipynb").unlink()
        if dict(kept) != {"tags": ["nbval-skip"]}:
            print(f"  nbdev_clean leaves the metadata {dict(kept)} of a tagged cell: see allowed_cell_metadata_keys in settings.ini")
            done = False
        remedy = "run tools/run_notebooks.py, or nbdev_clean --fname with its path"
        kept_all = [same(notebooks(ROOT / folder), notebooks(copy / folder), remedy) for folder in ("nbs", "book")]
        return all(kept_all) and done


def ruff() -> bool:
    return run("ruff", "check", "--quiet", "--output-format", "concise", ".")


def mypy() -> bool:
    return run("mypy", "cucn_nb")


def readme() -> bool:
    """README.md is what nbs/index.ipynb gives."""
    return run(sys.executable, "tools/make_readme.py", "--check")


def book() -> bool:
    """The book builds with warnings as errors, and its pages need nothing from elsewhere. The tests that read it need not build it again."""
    ENVIRONMENT.pop("BUILT_BOOK", None)
    if run(sys.executable, "tools/build_book.py", "--strict"):
        ENVIRONMENT["BUILT_BOOK"] = str(ROOT / "book" / "_build")
    return "BUILT_BOOK" in ENVIRONMENT


def docs() -> bool:
    """nbdev's own pages: every notebook is processed and rendered, and every name that the package offers is documented there."""
    with tempfile.TemporaryDirectory() as temporary:
        if not run(sys.executable, "tools/build_docs.py", "--output", temporary):
            return False
        pages = Path(temporary) / "_docs"
        text = {path.name: path.read_text(encoding="utf-8") for path in pages.glob("*.html")}
        missing = []
        for module in sorted((ROOT / "cucn_nb").rglob("*.py")):
            if module.name in ("__init__.py", "_modidx.py"):
                continue
            for part in ast.parse(module.read_text(encoding="utf-8")).body:
                public = isinstance(part, (ast.FunctionDef, ast.ClassDef)) and not part.name.startswith("_")
                if public and not any(re.search(rf"<h3[^>]*>{part.name}\b", page) for page in text.values()):
                    missing.append(f"{module.relative_to(ROOT)}: {part.name}")
        arguments = sum(page.count("<strong>Args</strong>") for page in text.values())
        print(f"{len(text)} pages, {arguments} tables of arguments")
        print(*(f"  {name} is not documented" for name in missing), sep="\n", end="\n" if missing else "")
        return not missing and len(text) == len(notebooks(ROOT / "nbs")) and arguments > len(text)


pytest_counts = {"passed": 0, "failed": 0, "skipped": 0, "error": 0}
cells = "no notebook was compared"


def pytest(*arguments: str) -> bool:
    """One run of pytest, whose lines are shown and counted as they come."""
    global cells
    cores = os.cpu_count() or 1
    threads = {"OMP_NUM_THREADS": str(max(1, cores // 2))}  # two such runs share the machine
    process = subprocess.Popen(("pytest", "--color=no", "--durations=15", *arguments), cwd=ROOT, env=threads | ENVIRONMENT,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    counted: dict[str, int] = {}
    for line in process.stdout:
        print(line, end="", flush=True)
        if re.search(r" in \d+(\.\d+)?s", line):
            for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", line):
                counted[word] = int(number)
        elif " compared (" in line:
            cells = line.strip()
    done = process.wait() == 0
    if not done and not counted.keys() & {"failed", "error"}:
        counted["error"] = 1  # it did not run to its end, or compared too few cells
    for word, number in counted.items():
        pytest_counts[word] += number
    return done


def tests() -> bool:
    """What plain `pytest --nbval` runs, in two halves side by side: the tests; and every notebook, run and compared with what it stores."""
    with ThreadPoolExecutor(2) as halves:
        return all([half.result() for half in (halves.submit(pytest, "--nbval", "nbs", "book"), halves.submit(pytest, "tests"))])


CHECKS = {check.__name__: check for check in (export, clean, ruff, mypy, readme, book, docs, tests)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"which of {', '.join(CHECKS)}; all when none is named")
    chosen = parser.parse_args().checks or list(CHECKS)
    for name in chosen:
        if name not in CHECKS:
            parser.error(f"no check {name}; there are {', '.join(CHECKS)}")
    results = {}
    for name in chosen:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        results[name] = CHECKS[name]()
        print(f"== {name}: {'passed' if results[name] else 'FAILED'} in {time.perf_counter() - start:.1f} s\n", flush=True)
    failed = [name for name, passed in results.items() if not passed]
    print("failed checks: " + (", ".join(failed) if failed else "none"))
    if "tests" in results:
        print(cells)
    others = [name for name in results if name != "tests"]
    passes = sum(results[name] for name in others) + pytest_counts["passed"]
    failures = sum(not results[name] for name in others) + pytest_counts["failed"] + pytest_counts["error"]
    print(f"{passes} passed, {failures} failed, {pytest_counts['skipped']} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
