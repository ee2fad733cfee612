"""What the build of the book promises: it is quick, and it links to a repository only where settings.ini names one."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 60.0  # seconds of processor time ...
YARDSTICK = 0.3  # ... on a machine that does tools/build_book.py's yardstick in as many seconds; on a slower one, or a busier one, in proportion
LAUNCH = ("colab.research.google.com", "mybinder.org")


def test_book_builds_strictly_in_a_minute(built):
    facts = json.loads((built / "build.json").read_text(encoding="utf-8"))
    print(facts)
    assert facts["strict"]
    assert 1 < facts["processor_seconds"] < LONGEST * max(1, facts["yardstick_seconds"] / YARDSTICK)


def test_no_page_names_a_repository_while_settings_name_none(built, load):
    options = load(ROOT / "book" / "_ext" / "repository.py").options(ROOT / "settings.ini")
    pages = "".join(page.read_text(encoding="utf-8") for page in (built / "html").rglob("*.html"))
    assert bool(options) == any(host in pages for host in LAUNCH) == ("btn-source-repository-button" in pages)


@pytest.mark.parametrize(
    ("url", "launch"),
    [
        ("", None),
        ("https://github.com/owner/name/", {"binderhub_url", "colab_url"}),
        ("https://git.example.org/owner/name.git", {"binderhub_url"}),  # Colab opens notebooks from GitHub alone
    ],
)
def test_repository_of_the_settings_decides_the_buttons(tmp_path, url, launch, load):
    (tmp_path / "settings.ini").write_text(f"[DEFAULT]\ngit_url = {url}\nbranch = trunk\n", encoding="utf-8")
    config = SimpleNamespace(html_theme_options={"navbar_persistent": []})
    load(ROOT / "book" / "_ext" / "repository.py").add(SimpleNamespace(srcdir=tmp_path), config)
    if launch is None:
        assert config.html_theme_options == {"navbar_persistent": []}
        return
    assert config.html_theme_options["repository_url"] == url.rstrip("/").removesuffix(".git")
    assert config.html_theme_options["repository_branch"] == "trunk"
    assert {name for name in config.html_theme_options["launch_buttons"] if name.endswith("_url")} == launch


@pytest.mark.slow
def test_page_links_to_the_repository_of_the_settings(tmp_path):
    """A book of two pages, built with the settings of this one and a repository."""
    source = tmp_path / "source"
    for name in ("book/_ext", "book/_static"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("book/_config.yml", "book/references.bib", "book/references.md", "nbs/index.ipynb"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    settings = (ROOT / "settings.ini").read_text(encoding="utf-8")
    settings, changed = re.subn(r"^git_url *=.*$", "git_url = https://github.com/owner/name", settings, flags=re.M)
    assert changed == 1
    (source / "settings.ini").write_text(settings, encoding="utf-8")
    (source / "book" / "_toc.yml").write_text("format: jb-book\nroot: book/references\nchapters: [{file: nbs/index}]\n", encoding="utf-8")
    command = [Path(sys.executable).parent / "jupyter-book", "build", ".", "--toc", "book/_toc.yml", "--config", "book/_config.yml", "--quiet"]
    done = subprocess.run([*command, "--path-output", tmp_path], cwd=source, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "_build" / "html" / "nbs" / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'href="(https://[^"]+)"', page)
    assert "https://github.com/owner/name" in links
    assert "https://colab.research.google.com/github/owner/name/blob/main/nbs/index.ipynb" in links
    assert "https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/nbs/index.ipynb" in links


def test_nbdev_pages_show_arguments_as_a_table(load):
    tables = load(ROOT / "tools" / "build_docs.py").tables
    text = "*Weigh.*\n\nArgs:\n    a: first,\n        or | second\n    **more: rest\nReturns:\n    A number.\nSource: eq. 1.\n\n```python\nArgs:\n```"
    assert tables(text).splitlines() == [
        "*Weigh.*",
        "",
        "",
        "| **Args** | |",
        "| --- | --- |",
        "| `a` | first, or \\| second |",
        "| `**more` | rest |",
        "",
        "| **Returns** | |",
        "| --- | --- |",
        "| | A number. |",
        "",
        "**Source:** eq. 1.",
        "",
        "```python",
        "Args:",
        "```",
    ]
    assert tables('[source](/blob/main/cucn_nb/a.py#L1){target="_blank"}\n\n### a') == "### a"
