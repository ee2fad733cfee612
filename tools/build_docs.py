"""Make the pages of nbdev's own site into _docs: every notebook of nbs/ with what each exported function takes and gives.

    python tools/build_docs.py                    into _docs
    python tools/build_docs.py --output FOLDER    into FOLDER/_docs

nbdev processes the notebooks. Quarto then renders the site by _quarto.yml where it is installed; where it is not, nbconvert renders the same
pages without the site's frame. nbdev's own commands would fetch and install Quarto when they miss it; they are not called here.
"""

import argparse
import contextlib
import gc
import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from nbdev import processors, quarto, serve

ROOT = Path(__file__).resolve().parent.parent
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields|Source): *(.*)$")
_ENTRY = re.compile(r"^    (\*{0,2}\w+): (.*)$")
_NOWHERE = re.compile(r"^\[source\]\(/blob/[^)]*\)\{[^}]*\}\s*", re.M)  # a link into the repository where settings.ini names none


_REMOTE_SCRIPT = re.compile(r"<script[^>]*\ssrc=[\"']https?:[^>]*>\s*</script>")
_MATHJAX = """<script>window.MathJax = {tex: {inlineMath: [["$", "$"], ["\\\\(", "\\\\)"]], processEscapes: true}};</script>
<script async src="mathjax/tex-chtml.js"></script>
"""


def tables(documentation: str) -> str:
    """The sections of a docstring as tables, which Markdown would run together into one paragraph."""
    lines: list[str] = []
    section = code = False
    for line in _NOWHERE.sub("", documentation).splitlines():
        code ^= line.startswith("```")
        heading, entry = _SECTION.match(line), _ENTRY.match(line)
        if code or not (heading or (section and line.startswith("    "))):
            section = section and not line.strip()
            lines.append(line)
        elif heading and heading[2]:
            lines += ["", f"**{heading[1]}:** {heading[2]}"]
            section = False
        elif heading:
            lines += ["", f"| **{heading[1]}** | |", "| --- | --- |"]
            section = True
        elif entry:
            lines.append(f"| `{entry[1]}` | {in_cell(entry[2])} |")
        elif lines[-1].startswith("| ") and not lines[-1].startswith("| ---") and line.startswith("     "):
            lines[-1] = f"{lines[-1][:-2]} {in_cell(line.strip())} |"
        else:
            lines.append(f"| | {in_cell(line.strip())} |")
    return "\n".join(lines)


def in_cell(text: str) -> str:
    """Keep a text from ending its cell of a table."""
    return text.replace("|", "\\|")


class FromPackage(processors.exec_show_docs):
    """Documents what a notebook exports from the package. nbdev itself would run the notebook's exported cells, and every cell that imports."""

    def begin(self) -> None:
        super().begin()
        names = [cell.directives_["default_exp"][0] for cell in self.nb.cells if "default_exp" in getattr(cell, "directives_", {})]
        if names:
            module = f"{processors.get_config().lib_name}.{names[0]}".removesuffix(".__init__")
            self.k.run_cell(f"import importlib; globals().update(vars(importlib.import_module({module!r})))")

    def __call__(self, cell: Any) -> None:
        if cell.cell_type == "code" and cell.source and processors._show_docs(cell.parsed_()):
            super().__call__(cell)


def process(project: Path) -> None:
    """Let nbdev process the notebooks of a project folder into its _proc, then mend what it writes."""
    with contextlib.chdir(project):
        processors.exec_show_docs = FromPackage
        quarto.refresh_quarto_yml()
        quarto.nbdev_sidebar.__wrapped__()
        serve.proc_nbs(force=True, n_workers=0)
    for path in sorted((project / "_proc").glob("*.ipynb")):
        notebook = nbformat.from_dict(json.loads(path.read_text(encoding="utf-8")))
        notebook.metadata.pop("widgets", None)
        for part in notebook.cells:
            if part.pop("has_sd", None):  # nbdev's own mark on the cells that it adds, which no reader of notebooks knows
                text = "\n\n".join(tables("".join(output.data["text/markdown"])) for output in part.outputs)
                part.update(cell_type="markdown", source=text)
                del part["outputs"], part["execution_count"]
        nbformat.write(notebook, path)


def render(processed: Path, pages: Path) -> None:
    """The processed notebooks as pages, by nbconvert. They load nothing from elsewhere: formulas are drawn by the MathJax that the book uses."""
    found = importlib.util.find_spec("sphinx-mathjax-offline")
    assert found is not None and found.origin is not None
    shutil.copytree(Path(found.origin).parent / "static" / "mathjax", pages / "mathjax")
    exporter = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_filter("clean_html", lambda text: text)  # the notebooks are our own, and making them safe takes a fifth of the time
    for path in sorted(processed.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        front = {}
        if notebook.cells[0].cell_type == "raw":
            front = dict(re.findall(r"^(title|description|output-file): ['\"]?(.*?)['\"]?$", notebook.cells.pop(0).source, re.M))
        for part in notebook.cells:
            if part.cell_type == "code" and "#| echo: false" in part.source:
                part.transient = nbformat.from_dict({"remove_source": True})
        heading = f"# {front.get('title', path.stem)}\n\n> {front.get('description', '')}"
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(heading))
        text, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": html.escape(front.get("title", path.stem))}})
        text = _REMOTE_SCRIPT.sub("", text).replace("</head>", f"{_MATHJAX}</head>", 1)
        (pages / front.get("output-file", f"{path.stem}.html")).write_text(text, encoding="utf-8")


def main() -> int:
    """Process the notebooks in a temporary project, and render them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT, metavar="FOLDER", help="where _docs goes; default: the project")
    output = parser.parse_args().output.resolve() / "_docs"
    gc.disable()  # this ends soon: collecting garbage would take longer than it saves
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        for name in ("settings.ini", "pyproject.toml"):
            shutil.copy(ROOT / name, project)
        for name in ("nbs", "cucn_nb", "book/images"):
            shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        shutil.copy(ROOT / "_quarto.yml", project / "nbs")
        process(project)
        shutil.rmtree(output, ignore_errors=True)
        if shutil.which("quarto"):
            subprocess.run(["quarto", "render", "--no-cache"], cwd=project / "_proc", stdin=subprocess.DEVNULL, check=True)
            shutil.copytree(project / "_proc" / "_docs", output)
        else:
            render(project / "_proc", output)
            print("rendered by nbconvert, since quarto is not on PATH")
    print(f"{output}: {len(list(output.glob('*.html')))} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
