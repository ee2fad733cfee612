"""What every notebook keeps to, so that the book, the nbdev site and a plain JupyterLab all show it well."""

import base64
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("nbs", "book")
NOTEBOOKS = {f"{folder}/{path.stem}": nbformat.read(path, as_version=4) for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.ipynb"))}
LARGEST_FIGURE = 60 * 1024
# a path of one machine, and what a library says on the side: neither is the same on the next machine
NOT_IN_OUTPUTS = re.compile(r"(?<![\w:/.])/(?:home|root|work|tmp|usr|opt|mnt|Users|private)/\S+|[A-Z]:\\Users|\w*Warning:|\d+%\|[^|]*\|")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def directive(cell, name):
    match = re.search(rf"^\s*#\s*\|\s*{name}:\s*(.+?)\s*$", cell.source, re.M)
    return match[1].strip("\"'") if match else None


def texts(cell):
    for output in cell.outputs:
        yield output.get("text", "")
        yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def test_every_notebook_is_in_the_table_of_contents():
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))

    def pages(entry):
        if "file" in entry or "root" in entry:
            yield (entry.get("file") or entry["root"]).removesuffix(".ipynb")
        if "glob" in entry:
            yield from (str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob(entry["glob"]) if path.suffix in (".ipynb", ".md"))
        for part in (*entry.get("parts", ()), *entry.get("chapters", ()), *entry.get("sections", ())):
            yield from pages(part)

    listed = Counter(pages(contents))
    assert {page for page in listed if listed[page] > 1} == set(), "listed more than once"
    assert NOTEBOOKS.keys() - listed.keys() == set(), "not in book/_toc.yml"
    missing = {page for page in listed if not any((ROOT / f"{page}{suffix}").is_file() for suffix in (".md", ".ipynb"))}
    assert missing == set(), "no such page"


def test_figure_labels_are_unique():
    labels = Counter(label for notebook in NOTEBOOKS.values() for cell in code_cells(notebook) if (label := directive(cell, "label")))
    assert {label for label, count in labels.items() if count > 1} == set()
    assert {label for label in labels if not label.startswith("fig-")} == set()


@each_notebook
def test_has_a_title_and_a_summary(name):
    first = next(cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "markdown")
    assert re.match(r"# \S[^\n]*\n+> \S", first)


@each_notebook
def test_was_run(name):
    assert any(cell.outputs for cell in code_cells(NOTEBOOKS[name])), "no output is stored: run python tools/run_notebooks.py " + name


@each_notebook
def test_outputs_hold_no_error_and_nothing_of_one_machine(name):
    for number, cell in enumerate(code_cells(NOTEBOOKS[name])):
        wrong = [output for output in cell.outputs if output.output_type == "error" or output.get("name") == "stderr"]
        assert not wrong, f"cell {number}\n{cell.source}"
        for text in texts(cell):
            assert not NOT_IN_OUTPUTS.search(text), f"cell {number}: {NOT_IN_OUTPUTS.search(text)[0]}"


@each_notebook
def test_figures_are_small_and_described(name):
    for number, cell in enumerate(code_cells(NOTEBOOKS[name])):
        for output in cell.outputs:
            for kind, data in output.get("data", {}).items():
                if kind in ("image/png", "image/jpeg"):
                    size = len(base64.b64decode(data))
                    assert size <= LARGEST_FIGURE, f"cell {number}: a figure of {size / 1024:.0f} KB"
                    assert directive(cell, "fig-cap") and directive(cell, "fig-alt"), f"cell {number}: a figure without caption or alternative text"


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name.startswith("nbs/")])  # the chapters in book/ are the book's own
def test_uses_no_syntax_that_only_the_book_reads(name):
    for cell in NOTEBOOKS[name].cells:
        if cell.cell_type == "markdown":
            found = re.search(r"\{[a-z:]+\}`[^`\n]+`|^\([\w-]+\)=$|^:::|^```\{", cell.source, re.M)
            assert not found, found[0]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_commands_fit_on_the_page(name):
    source = "\n".join(cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "markdown")
    for block in re.findall(r"^```(?:sh|text)\n(.*?)^```", source, re.M | re.S):
        for line in block.splitlines():
            assert len(line) <= 70, f"{line}\nthe page shows 70 characters; break the command with a backslash"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_leaves_no_temporary_folder(name):
    code = "\n".join(cell.source for cell in NOTEBOOKS[name].cells if cell.cell_type == "code")
    assert "mkdtemp(" not in code, "a folder that nobody removes: use tempfile.TemporaryDirectory"
    assert len(re.findall(r"^\w+ = tempfile\.TemporaryDirectory\(", code, re.M)) == len(re.findall(r"^\w+\.cleanup\(\)", code, re.M))
