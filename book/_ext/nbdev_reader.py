"""Reads a notebook for the book: takes nbdev's and Quarto's `#|` lines out, and does what they say.

`#| label: fig-x`, `#| fig-cap:` and `#| fig-alt:` become a numbered figure with caption and alternative text; hidden cells stay hidden.
So does a picture that stands alone in a text cell, `![alternative text](images/name.svg "Caption.")`, with the label `fig-name`; one that
lies outside of the notebook's folder, `../book/images/name.svg`, gets no label, so that a chapter of nbs/ and one of book/ may show the
same picture.
"""

import re

import nbformat

_DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$")
_PICTURE = re.compile(r'^!\[(?P<alt>[^\]\n]+)\]\((?P<path>\S+?/(?P<name>[\w-]+)\.\w+) "(?P<caption>[^"\n]+)"\)$', re.M)
_TAGS = {"hide": "remove-cell", "default_exp": "remove-cell", "hide_input": "remove-input", "hide_output": "remove-output"}


def as_figure(match):
    """A picture of a text cell as MyST's figure."""
    label = [] if match["path"].startswith("../") else [f":name: fig-{match['name']}"]
    return "\n".join([f":::{{figure}} {match['path']}", *label, f":alt: {match['alt']}", "", match["caption"], ":::"])


def read(text):
    """The notebook in `text` (JSON), with MyST-NB's metadata in place of the directives."""
    notebook = nbformat.reads(text, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _PICTURE.sub(as_figure, cell.source)
        if cell.cell_type != "code":
            continue
        lines, options = cell.source.splitlines(), {}
        while lines and (match := _DIRECTIVE.match(lines[0])):
            options[match[1]] = match[2].strip("\"'")
            lines.pop(0)
        cell.source = "\n".join(lines)
        tags = set(cell.metadata.get("tags", [])) | {tag for name, tag in _TAGS.items() if name in options}
        tags |= {"remove-input"} if options.get("echo") == "false" else set()
        tags |= {"remove-cell"} if options.get("include") == "false" else set()
        tags |= {"skip-execution"} if options.get("eval") == "false" else set()
        if tags:
            cell.metadata["tags"] = sorted(tags)
        if options.get("fig-cap"):
            figure = {"caption": options["fig-cap"]}
            if options.get("label"):
                figure["name"] = options["label"]
            cell.metadata["mystnb"] = {"figure": figure}
            if options.get("fig-alt"):
                cell.metadata["mystnb"]["image"] = {"alt": options["fig-alt"]}
    return notebook


def setup(app):
    return {"parallel_read_safe": True}
