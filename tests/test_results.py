"""The book's tables come from the records: change a record, and the table changes."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "book" / "21_tables.ipynb"


def tables(notebook):
    """The Markdown tables among the outputs."""
    texts = [output["data"]["text/markdown"] for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
             if "text/markdown" in output.get("data", {})]
    return [text for text in texts if "|---" in text]


@pytest.mark.slow
def test_a_changed_record_changes_the_table(tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / "book").mkdir()
    stored = nbformat.read(TABLES, as_version=4)
    record = sorted((tmp_path / "results" / "experiments" / "faces").glob("cross_entropy-noise0-seed*.json"))[0]
    changed = json.loads(record.read_text("utf-8"))
    for name in ("mean", "overall"):  # equal on a balanced test set; a little less, so that what the chapter says of its numbers still holds
        changed["evaluation"][name] -= 0.01
    record.write_text(json.dumps(changed), "utf-8")
    published = json.loads((tmp_path / "results" / "published.json").read_text("utf-8"))
    published["cucn_table1"]["rows"]["VTFF"]["raf_db"] = 12.34
    (tmp_path / "results" / "published.json").write_text(json.dumps(published), "utf-8")

    fresh = nbformat.read(TABLES, as_version=4)
    NotebookClient(fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "book")}}).execute()
    before, after = tables(stored), tables(fresh)
    assert len(before) == len(after)
    differing = [k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    row = next(line for line in after[differing[1]].splitlines() if line.startswith("| cross_entropy |"))
    old = next(line for line in before[differing[1]].splitlines() if line.startswith("| cross_entropy |"))
    assert row.split("|")[3] != old.split("|")[3], "the mean of the first table over seeds"
    assert "12.34" in after[differing[0]] and "12.34" not in before[differing[0]]
