"""Build the book into book/_build/html, from the outputs that the notebooks store.

    python tools/build_book.py                    build it
    python tools/build_book.py --strict           from nothing, with warnings as errors (what the checks do)
    python tools/build_book.py --output FOLDER    into FOLDER/_build/html

A page with a script, style or picture from another host in it fails the build: the book is read offline. (What a browser would request is watched
by tests/test_browser.py.) How long the build took and
how large it is stands in build.json beside the pages' folder.
"""

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# jupyter-book with two things left out that take a third of its time: collecting garbage, of which a build that soon ends makes little, and a
# grammar of addresses that jsonschema compiles when it is installed, to check what no setting of the book holds.
_JUPYTER_BOOK = """
import gc, sys
gc.disable()
sys.modules["rfc3987_syntax"] = None
from jupyter_book.cli.main import main
main(prog_name="jupyter-book")
"""
_REMOTE = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"'](?:https?:)?//[^\"']+"
    r"|<link\b(?![^>]*rel=[\"']canonical)[^>]*\bhref=[\"'](?:https?:)?//[^\"']+"
)


def remote_parts(pages: Path) -> list[str]:
    """What the pages load from elsewhere."""
    found = []
    for page in sorted(pages.rglob("*.html")):
        found += [f"{page.relative_to(pages)}: {match}" for match in _REMOTE.findall(page.read_text(encoding="utf-8"))]
    return found


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def yardstick() -> float:
    """Seconds of processor time that a fixed piece of Python takes: how fast this machine is just now."""
    start = time.process_time()
    words: dict[str, int] = {}
    for number in range(1_500_000):
        words[str(number % 1000)] = number
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strict", action="store_true", help="warnings are errors, every reference must resolve")
    parser.add_argument("--output", type=Path, default=ROOT / "book", metavar="FOLDER", help="where _build goes; default: book")
    arguments = parser.parse_args()
    build = arguments.output.resolve() / "_build"
    pages = build / "html"
    if arguments.strict:
        shutil.rmtree(build, ignore_errors=True)
    command = [sys.executable, "-c", _JUPYTER_BOOK, "build", ".", "--toc", "book/_toc.yml", "--config", "book/_config.yml"]
    command += ["--path-output", build.parent, "--quiet"] + (["-W", "-n", "--keep-going", "--all"] if arguments.strict else [])
    before, start = yardstick(), time.perf_counter()
    if code := subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode:
        return code
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = {
        "strict": arguments.strict,
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "yardstick_seconds": round(max(before, yardstick()), 3),
        "pages": len(list(pages.rglob("*.html"))),
        "megabytes": round(megabytes(pages), 1),
        "megabytes_of_mathjax": round(megabytes(pages / "_static" / "mathjax"), 1),
    }
    (build / "build.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if remote := remote_parts(pages):
        print("the book loads from other hosts:", *remote, sep="\n  ")
        return 1
    print(f"{pages / 'index.html'}: {', '.join(f'{value} {name}'.replace('_', ' ') for name, value in facts.items() if name != 'strict')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
