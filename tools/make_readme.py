"""README.md from nbs/index.ipynb: its text, code and outputs.

    python tools/make_readme.py            write README.md and the figures book/images/index-*
    python tools/make_readme.py --check    fail when they are not what the notebook gives

Markdown cells come as they are, with links relative to the root. A code cell is a python block without its `#|` lines; `#| hide`,
`#| include: false` and the tag remove-cell drop the cell, `#| echo: false`, `#| hide_input` and the tag remove-input its code,
`#| hide_output` and the tag remove-output what it gave.
"""

import argparse
import base64
import posixpath
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "nbs" / "index.ipynb"
README = ROOT / "README.md"
IMAGES = "book/images"
_DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$")
_LINK = re.compile(r"(\]\()([^)\s#]+)")


def from_root(text: str) -> str:
    """Links of a notebook in nbs/, as they read from the root."""

    def move(match: re.Match[str]) -> str:
        target = match[2]
        if re.match(r"[a-z]+:", target) or target.startswith("/"):
            return match[0]
        return match[1] + posixpath.normpath(posixpath.join("nbs", target))

    return _LINK.sub(move, text)


def directives(source: str) -> tuple[dict[str, str], str]:
    """The `#|` lines at the top of a cell, and the code under them."""
    lines, found = source.splitlines(), {}
    while lines and (match := _DIRECTIVE.match(lines[0])):
        found[match[1]] = match[2].strip("\"'")
        lines.pop(0)
    return found, "\n".join(lines).strip("\n")


def convert(notebook: nbformat.NotebookNode) -> tuple[str, dict[str, bytes]]:
    """The text of the README, and its figures by path."""
    blocks: list[str] = []
    images: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            blocks.append(from_root(cell.source.strip()))
        if cell.cell_type != "code":
            continue
        found, code = directives(cell.source)
        tags = cell.metadata.get("tags", [])
        if {"hide", "default_exp"} & found.keys() or found.get("include") == "false" or "remove-cell" in tags:
            continue
        if code and not (found.get("echo") == "false" or "hide_input" in found or "remove-input" in tags):
            blocks.append(f"```python\n{code}\n```")
        if "hide_output" in found or "remove-output" in tags:
            continue
        for output in cell.outputs:
            data = output.get("data", {})
            if "text/markdown" in data:
                blocks.append(from_root(data["text/markdown"].strip()))
            elif kinds := [kind for kind in ("png", "jpeg") if f"image/{kind}" in data]:
                path = f"{IMAGES}/index-{len(images) + 1}.{kinds[0]}"
                images[path] = base64.b64decode(data[f"image/{kinds[0]}"])
                blocks.append(f"![{found.get('fig-alt') or found.get('fig-cap') or 'figure'}]({path})")
                blocks.extend([found["fig-cap"]] if found.get("fig-cap") else [])
            elif text := (output.get("text") or data.get("text/plain", "")).rstrip():
                blocks.append(f"```text\n{text}\n```")
    return "\n\n".join(blocks) + "\n", images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when README.md is not what the notebook gives")
    check = parser.parse_args().check
    if not INDEX.is_file():
        print(f"{INDEX.relative_to(ROOT)} is not there: README.md is made from it")
        return 1
    text, images = convert(nbformat.read(INDEX, as_version=4))
    expected = {"README.md": text.encode(), **images}
    present = {str(path.relative_to(ROOT)) for path in (ROOT / IMAGES).glob("index-*")} | {"README.md"}
    wrong = []
    for name in sorted(present | expected.keys()):
        path, content = ROOT / name, expected.get(name)
        if (path.read_bytes() if path.is_file() else None) == content:
            continue
        wrong.append(name)
        if check:
            continue
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    if check and wrong:
        print(f"{', '.join(wrong)}: not what nbs/index.ipynb gives; run python tools/make_readme.py")
    return 1 if check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
