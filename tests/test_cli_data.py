"""The flags of `cucn` that say which images are used: each does what it says, is recorded, and comes back on resume and evaluate."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from layout_writers import write_class_folders, write_ferplus, write_raf_db
from PIL import Image
from safetensors.torch import load_file

from cucn_nb import cli, datasets, faces, protocols, training
from cucn_nb.cli import main

SMALL = ("--method", "cross_entropy", "--device", "cpu", "--batch-size", "32")


def drawn(count, split, seed):
    """uint8 [N, 32, 32, 3] and labels [N] in enum order."""
    made = faces.make_set(count, seed, split, 32)
    return made.images.transpose(0, 2, 3, 1) if made.images.shape[1] == 3 else made.images, np.asarray(made.labels)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Class folders with 120 training, 28 validation and 28 test faces, one empty file in each split."""
    root = tmp_path_factory.mktemp("data") / "album"
    write_class_folders(root, {"train": drawn(120, "train", 1), "valid": drawn(28, "test", 2), "test": drawn(28, "test", 3)})
    for split in ("train", "valid", "test"):
        (root / split / "fear" / "empty.png").write_bytes(b"")
    return root


def train(data, out, *more, epochs=1):
    main(["train", "--data", str(data), "--out", str(out), *SMALL, "--epochs", str(epochs), *map(str, more)])
    return json.loads((out / "config.json").read_text())


def refused(capsys, *words):
    """What the command says on stderr when it refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


def stop_after_first_epoch(monkeypatch):
    """A Ctrl-C in the second epoch."""
    judged, true = [], training.evaluate

    def evaluate(*arguments):
        judged.append(None)
        if len(judged) == 2:
            raise KeyboardInterrupt
        return true(*arguments)

    monkeypatch.setattr(training, "evaluate", evaluate)


def test_every_flag_together(album, tmp_path, monkeypatch, capsys):
    """Quarantine, cache, imbalance, noise and balanced draws: made, recorded, taken up again after an interruption, judged."""
    flags = ("--bad", "quarantine", "--cache", tmp_path / "caches", "--imbalance", "30", "--noise", "0.3", "--sampling", "balanced", "--seed", "3")
    whole = train(album, tmp_path / "whole", *flags, epochs=2)
    assert [path.name for path in (tmp_path / "caches").glob("*.safetensors")] != []
    with open(tmp_path / "whole-left-out.csv", newline="") as file:  # a cache holds all splits, and so does its list
        assert sorted(row["path"] for row in csv.DictReader(file)) == [f"{split}/fear/empty.png" for split in ("test", "train", "valid")]

    clean = datasets.read(album, "train", quarantine=tmp_path / "a.csv")
    valid = datasets.read(album, "valid", quarantine=tmp_path / "b.csv")
    want = protocols.symmetric_noise(protocols.imbalance(clean, 30, 3), 0.3, 3)
    assert whole["data"]["train"]["fingerprint"] == want.fingerprint() and whole["data"]["valid"]["fingerprint"] == valid.fingerprint()
    assert whole["data"]["train"]["manifest"] == clean.manifest and whole["validation"] == {"own": True}
    assert whole["protocol"] == {"imbalance": 30.0, "noise": 0.3, "noise_list": None, "seed": 3} and whole["training"]["sampling"] == "balanced"
    assert (whole["reading"]["bad"], whole["reading"]["cache"]) == ("quarantine", str(tmp_path / "caches"))
    assert len(want) < len(clean) == 120 and any("changed to another class" in note for note in whole["data"]["train"]["notes"])

    with monkeypatch.context() as patch:
        stop_after_first_epoch(patch)
        with pytest.raises(SystemExit) as stop:
            train(album, tmp_path / "cut", *flags, epochs=2)
        assert stop.value.code == 130 and len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 1
    (tmp_path / "cut-left-out.csv").write_text("mine")
    main(["train", "--resume", str(tmp_path / "cut")])
    assert (tmp_path / "cut-left-out.csv").read_text() == "mine"  # whoever goes on writes no list anew
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)

    capsys.readouterr()
    main(["evaluate", str(tmp_path / "whole")])
    said = capsys.readouterr().out
    assert "note: test: 1 file(s) left out: 1 empty" in said and "making the cache" not in said
    assert json.loads((tmp_path / "whole" / "evaluation.json").read_text())["count"] == 28
    main(["evaluate", str(tmp_path / "whole"), "--split", "train"])
    assert json.loads((tmp_path / "whole" / "evaluation-album-train.json").read_text())["count"] == len(want)


def test_strict_names_every_bad_file(album, tmp_path, capsys):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(album, spoilt)
    for i in range(4):
        (spoilt / "train" / "anger" / f"bad{i}.jpg").write_bytes(b"")
    lines = refused(capsys, "train", "--data", spoilt, "--out", tmp_path / "run", *SMALL).splitlines()
    assert len(lines) == 6 and lines[-1].startswith("cucn: spoilt: 5 of 125 image file(s) cannot be used")
    assert {line.split(": ")[1] for line in lines[:-1]} == {"train/fear/empty.png", *(f"train/anger/bad{i}.jpg" for i in range(4))}
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def tidy(album, tmp_path_factory):
    """The album without its empty files."""
    root = tmp_path_factory.mktemp("tidy") / "album"
    shutil.copytree(album, root)
    for empty in root.rglob("empty.png"):
        empty.unlink()
    return root


def test_noise_list(tidy, tmp_path, capsys):
    """A list with one label changed: trained on, recorded, and missed when it changes."""
    flat = tmp_path / "raf"
    write_raf_db(flat, {"train": drawn(120, "train", 1), "test": drawn(28, "test", 3)})
    whole = datasets.read(flat, "train")
    cut, _ = protocols.stratified_split(whole, cli.VALIDATION, 0)
    stems = {source: source.rsplit("/", 1)[1].removesuffix("_aligned.jpg") for source in whole.sources}
    named = [f"{stems[source]}.jpg {label}" for source, label in zip(whole.sources, whole.labels.tolist(), strict=True)]
    victim = whole.sources.index(cut.sources[0])
    changed = [*named]
    changed[victim] = f"{stems[cut.sources[0]]}.jpg {(int(whole.labels[victim]) + 1) % 7}"
    (tmp_path / "list.txt").write_text("\n".join(changed) + "\n")
    want = protocols.listed_noise(cut, tmp_path / "list.txt")
    assert int((want.labels != cut.labels).sum()) == 1
    record = train(flat, tmp_path / "run", "--noise-list", tmp_path / "list.txt")
    assert record["data"]["train"]["fingerprint"] == want.fingerprint() != cut.fingerprint()
    assert record["protocol"]["noise_list"] == str(tmp_path / "list.txt") and record["protocol"]["noise"] is None
    (tmp_path / "list.txt").write_text("\n".join(named) + "\n")
    assert "list.txt has changed since the run began" in refused(capsys, "evaluate", tmp_path / "run", "--split", "train")


@pytest.mark.parametrize(("words", "message"), [
    (("--noise", "0.1", "--noise-list", "l.txt"), "both say which labels are wrong"),
    (("--seed", "-1"), "--seed -1: give 0 or more"),
    (("--data", "faces", "--rule", "argmax"), "rule cannot be chosen for faces"),
    (("--data", "faces", "--num-classes", "7"), "num_classes cannot be chosen for faces"),
    (("--data", "faces", "--layout", "csv"), "layout cannot be chosen for faces"),
])
def test_flags_that_contradict_each_other(tmp_path, capsys, words, message):
    assert message in refused(capsys, "train", "--out", tmp_path / "run", *words) and not (tmp_path / "run").exists()


def test_places_that_would_spoil_something(tidy, tmp_path, capsys):
    assert "lies within the data" in refused(capsys, "train", "--data", tidy, "--out", tidy / "runs" / "a")
    assert "has no name" in refused(capsys, "train", "--data", tidy, "--out", ".")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").touch()
    assert "is not empty" in refused(capsys, "train", "--data", tmp_path / "nowhere", "--out", tmp_path / "used")  # before anything is read


def test_a_resumed_run_takes_no_other_settings(tidy, tmp_path, capsys):
    train(tidy, tmp_path / "run")
    message = refused(capsys, "train", "--resume", tmp_path / "run", "--epochs", "3", "--noise", "0.2", "--seed", "1")
    assert "--noise, --seed: a resumed run takes this from its folder; leave them out" in message


def test_a_resumed_run_may_go_on_longer_slower_or_in_another_precision(tidy, tmp_path):
    before = train(tidy, tmp_path / "run")["training"]
    main(["train", "--resume", str(tmp_path / "run"), "--epochs", str(before["epochs"] + 1), "--lr", "0.0005", "--precision", "float32"])
    record = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))
    assert record["training"] == {**before, "epochs": before["epochs"] + 1, "lr": 0.0005, "classifier_lr": 0.0005, "precision": "float32"}
    (changes,) = record["changes"]
    assert changes["training.lr"] == [before["lr"], 0.0005] and changes["epoch"] == before["epochs"] + 1 and record["precision"] == "no"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()) == before["epochs"] + 1


def test_quarantine_lists_each_split(album, tmp_path):
    train(album, tmp_path / "run", "--bad", "quarantine")
    main(["evaluate", str(tmp_path / "run")])
    lists = {split: tmp_path / f"run-left-out-{split}.csv" for split in ("train", "valid")} | {"test": tmp_path / "run" / "left-out-test.csv"}
    for split, path in lists.items():
        with open(path, newline="") as file:
            assert [row["path"] for row in csv.DictReader(file)] == [f"{split}/fear/empty.png"]


def test_own_validation_folder(tidy, tmp_path):
    record = train(tidy, tmp_path / "run")
    assert record["validation"] == {"own": True} and record["data"]["train"]["count"] == 120
    assert record["data"]["valid"]["fingerprint"] == datasets.read(tidy, "valid").fingerprint()


def test_against(tidy, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(tidy, copy)
    main(["data", str(tidy), "--manifest", str(tmp_path / "mine.csv")])
    main(["data", str(copy), "--against", str(tmp_path / "mine.csv")])
    assert capsys.readouterr().out.splitlines()[-1].startswith("the same images under the same labels")
    next((copy / "test" / "fear").iterdir()).unlink()
    with pytest.raises(SystemExit) as stop:
        main(["data", str(copy), "--against", str(tmp_path / "mine.csv")])
    assert stop.value.code == 1


def test_another_copy_is_read_as_the_run_was(tmp_path):
    """FERPlus by the largest vote, without contempt: the choice goes with the run to a copy elsewhere."""
    splits = {"train": drawn(120, "train", 5), "valid": drawn(28, "test", 6), "test": drawn(28, "test", 7)}
    here = tmp_path / "here"
    write_ferplus(here, splits)
    rows = (here / "FER2013Test" / "label.csv").read_text().splitlines()
    head = rows[0].rsplit(",", 10)[0]
    undecided = [4, 4, 1, 1, 0, 0, 0, 0, 0, 0]  # a largest vote, and no majority
    (here / "FER2013Test" / "label.csv").write_text("\n".join([",".join([head, *map(str, undecided)]), *rows[1:]]) + "\n")
    (here / "fer2013new.csv").unlink()
    shutil.rmtree(here / "FER2013Valid")
    shutil.copytree(here, tmp_path / "there")
    train(here, tmp_path / "run", "--rule", "argmax", "--num-classes", "7")
    main(["evaluate", str(tmp_path / "run")])
    main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "there")])
    counts = [json.loads(path.read_text())["count"] for path in (tmp_path / "run").glob("evaluation*.json")]
    assert counts == [28, 28]
    strict = datasets.read(here, "test", num_classes=7)
    assert len(strict) == 27, strict.notes  # the strict rule would have lost one


def test_a_network_that_saw_grey_is_judged_on_grey(tidy, tmp_path):
    grey = tmp_path / "grey"
    shutil.copytree(tidy, grey)
    for split in ("train", "valid"):
        for path in (grey / split).rglob("*.png"):
            Image.open(path).convert("L").save(path)
    train(grey, tmp_path / "run")
    _, data, _, _ = cli._judged(tmp_path / "run", None, "test")
    assert data.images.shape[1] == 1
    first = np.array(Image.open(grey / data.sources[0]).convert("L"))
    assert np.array_equal(data.images[0, 0].numpy(), first)


def test_what_goes_with_a_run_to_another_layout(monkeypatch):
    reading = {"layout": "csv", "num_classes": 7, "rule": "argmax", "bad": "quarantine", "cache": "x"}
    found = SimpleNamespace(layout="")
    monkeypatch.setattr("cucn_nb.layouts.recognise", lambda path: (found.layout, ""))
    for layout, kept in {"ferplus": {"num_classes": 7, "rule": "argmax"}, "affectnet npy": {"num_classes": 7}, "raf-db": {}, "fer2013": {}}.items():
        found.layout = layout
        assert cli._elsewhere(reading, "somewhere") == kept
    assert cli._elsewhere(reading, "faces") == {}
