"""Build the book into book/_build/html, from the outputs that the notebooks store.

    python tools/build_book.py             build it
    python tools/build_book.py --strict    from nothing, with warnings as errors (what the checks do)

A page that would load a script, style, font or picture from another host fails the build: the book is read offline.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "book" / "_build" / "html"
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strict", action="store_true", help="warnings are errors, every reference must resolve")
    strict = parser.parse_args().strict
    if strict:
        shutil.rmtree(PAGES.parent, ignore_errors=True)
    command = [Path(sys.executable).parent / "jupyter-book", "build", ".", "--toc", "book/_toc.yml", "--config", "book/_config.yml"]
    command += ["--path-output", "book", "--quiet"] + (["-W", "-n", "--keep-going", "--all"] if strict else [])
    if code := subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode:
        return code
    if remote := remote_parts(PAGES):
        print("the book loads from other hosts:", *remote, sep="\n  ")
        return 1
    print(f"{PAGES.relative_to(ROOT)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
