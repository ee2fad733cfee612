"""The tools that turn notebooks into the README and the book."""

import base64
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import numpy as np
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def stream(text):
    return new_output("stream", name="stdout", text=text)


def shown(kind, data):
    return new_output("display_data", data={kind: data, "text/plain": "<object>"})


def test_readme_holds_text_code_and_outputs(load):
    picture = base64.b64encode(b"picture").decode()
    notebook = new_notebook(
        cells=[
            new_code_cell("#| default_exp nothing"),
            new_markdown_cell("# Title\n\n[faces](01_faces.ipynb#top), [web](https://example.org/a.ipynb), ![x](../book/images/x.png), [up](#t)"),
            new_code_cell("#| hide\nsecret = 1", outputs=[stream("secret")]),
            new_code_cell("print('one')", outputs=[stream("one\n")]),
            new_code_cell("#| echo: false\nhidden_code()", outputs=[shown("text/markdown", "| a |\n| - |\n| [b](10_b.ipynb) |")]),
            new_code_cell("#| label: fig-p\n#| fig-cap: \"A cap\"\n#| fig-alt: \"An alt\"\nplot()", outputs=[shown("image/png", picture)]),
            new_code_cell("quiet()", outputs=[stream("never seen")], metadata={"tags": ["remove-output"]}),
        ]
    )
    text, images = load(ROOT / "tools" / "make_readme.py").convert(notebook)
    assert images == {"book/images/index-1.png": b"picture"}
    assert text.split("\n\n") == [
        "# Title",
        "[faces](nbs/01_faces.ipynb#top), [web](https://example.org/a.ipynb), ![x](book/images/x.png), [up](#t)",
        "```python\nprint('one')\n```",
        "```text\none\n```",
        "| a |\n| - |\n| [b](nbs/10_b.ipynb) |",
        "```python\nplot()\n```",
        "![An alt](book/images/index-1.png)",
        "A cap",
        "```python\nquiet()\n```\n",
    ]


def test_book_reader_turns_directives_into_figures_and_hides_what_is_hidden(load):
    cells = [
        new_code_cell("#| default_exp x"),
        new_code_cell('#| label: fig-x\n#| fig-cap: "Loss: over time"\n#| fig-alt: "A line"\nplot()'),
        new_code_cell("#| export\nx = 1", metadata={"tags": ["nbval-skip"]}),
        new_code_cell("#| hide_input\nshow()"),
        new_code_cell("#| eval: false\nnever()"),
    ]
    first, figure, exported, output, never = load(ROOT / "book" / "_ext" / "nbdev_reader.py").read(nbformat.writes(new_notebook(cells=cells))).cells
    assert first.metadata.tags == ["remove-cell"]
    assert figure.source == "plot()"
    assert figure.metadata.mystnb == {"figure": {"caption": "Loss: over time", "name": "fig-x"}, "image": {"alt": "A line"}}
    assert (exported.source, exported.metadata.tags) == ("x = 1", ["nbval-skip"])
    assert output.metadata.tags == ["remove-input"]
    assert never.metadata.tags == ["skip-execution"]


def test_remote_parts_of_a_page_are_found(tmp_path, load):
    remote_parts = load(ROOT / "tools" / "build_book.py").remote_parts
    own = '<script src="_static/a.js"></script><a href="https://example.org">x</a><link rel="canonical" href="https://example.org/x">'
    (tmp_path / "own.html").write_text(own)
    assert remote_parts(tmp_path) == []
    far = '<script async src="https://cdn.example.org/a.js"></script><link rel="stylesheet" href="//example.org/a.css">'
    (tmp_path / "far.html").write_text(far)
    assert len(remote_parts(tmp_path)) == 2


def test_modules_are_listed_in_the_order_of_their_notebooks(load):
    found = load(ROOT / "book" / "_ext" / "module_list.py").modules(ROOT / "cucn_nb")
    assert [notebook for _, notebook in found] == sorted(notebook for _, notebook in found)
    assert ("cucn_nb.cbam", "11_cbam") in found
    assert "cucn_nb._modidx" not in dict(found)


def test_tools_say_what_they_do():
    for tool in ("check", "build_book", "make_readme", "run_notebooks"):
        done = subprocess.run([sys.executable, ROOT / "tools" / f"{tool}.py", "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "usage" in done.stdout, tool


def test_fer2013_packed_and_unpacked_is_the_same(load, tmp_path):
    tool, rng = load(ROOT / "tools" / "pack_fer2013.py"), np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 48 * 48))
    images[4] = images[1]  # a copy, stored once
    usages = ["Training", "Training", "Training", "PublicTest", "PublicTest", "PrivateTest"]
    pixels = [" ".join(map(str, image)) for image in images]
    lines = ["emotion,pixels,Usage", *(f"{k},{pixels[k]},{usage}" for k, usage in enumerate(usages))]
    votes = ["Usage,Image name,neutral", *(f"{usage},fer{k}.png,{k}" for k, usage in enumerate(usages))]
    released, back = tmp_path / "released", tmp_path / "back"
    released.mkdir()
    (released / "fer2013.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    (released / "fer2013new.csv").write_bytes("\r\n".join([*votes, ""]).encode())
    tool.pack(released, tmp_path / "packed.zip")
    tool.unpack(tmp_path / "packed.zip", back)
    for name in ("fer2013.csv", "fer2013new.csv"):  # all but the last row, which no command here may use
        assert (back / name).read_bytes().splitlines() == (released / name).read_bytes().splitlines()[:-1]
    with zipfile.ZipFile(tmp_path / "packed.zip") as archive:
        assert Image.open(io.BytesIO(archive.read("00000.png"))).size == (48, 4 * 48)
