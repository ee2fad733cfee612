"""The book's tables come from the records: change a record, and the table changes."""

import hashlib
import json
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from cucn_nb import datasets, methods
from cucn_nb.experiments import read_records

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


def test_the_rule_tells_short_trainings_from_long_ones():
    folder = ROOT / "results" / "experiments"
    assert not any(r["finished"] for name in ("ladder-5-rest", "fer2013-8") for r in read_records(folder / name))
    long = read_records(folder / "faces-rest")
    settled = [r for r in long if r["cell"]["noise"] == 0 and (r["cell"]["seed"] == 0 or r["cell"]["setting"] in ("cross_entropy", "rul-none"))]
    assert len(settled) >= 10
    for r in settled:
        assert r["training"]["epochs"] == 30 and r["finished"], (r["cell"], r["progress"])


def test_kept_answers_give_the_numbers_of_their_records():
    for path in sorted((ROOT / "results" / "experiments").glob("*/*.npz")):
        record = json.loads(path.with_suffix(".json").read_text("utf-8"))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == record["answers"]["sha256"]
        with np.load(path, allow_pickle=False) as kept:
            right = kept["test_log_probability"].astype(np.float32).argmax(1) == kept["test_label"]
            assert abs(right.mean() - record["evaluation"]["overall"]) < 0.002  # equal in float16 they may be
            assert [len(kept[f"{split}_row"]) for split in ("train", "valid", "test")] == [
                *(record["data"][split]["count"] for split in ("train", "valid")), record["evaluation"]["count"]]


def test_the_trunk_is_the_one_that_its_record_tells_of():
    folder = ROOT / "results" / "networks"
    record = json.loads((folder / "faces_trunk.json").read_text("utf-8"))
    assert hashlib.sha256((folder / "faces_trunk.safetensors").read_bytes()).hexdigest() == record["sha256"]
    assert record["unexplained_variance"][-1] < 0.4 and record["data"]["fingerprint"] == datasets.read("faces").fingerprint()
    methods.create("cucn", counts=[10] * 7, image_size=64, stem="small", width=16, cbam="open", weights=str(folder / "faces_trunk.safetensors"))
