"""The command `cucn`: bad input gives one clear line and exit code 2, a run can be interrupted, resumed and judged."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cucn_nb import faces
from cucn_nb.checkpoint import load_state, save_state
from cucn_nb.cli import METHODS, Train, main, method_options

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 rendered faces of 32 pixels in class folders."""
    path = tmp_path_factory.mktemp("data") / "faces"
    faces.write_folders(faces.make_set(300, 1, "train", 32), path)
    return path


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run of one epoch on them."""
    out = tmp_path_factory.mktemp("runs") / "run"
    main(["train", "--method", "cucn", "--data", str(folder), "--out", str(out), "--epochs", "1", "--device", "cpu"])
    return out


def complaint(capsys, *words):
    """What the command says on stderr when it refuses."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("cucn: ") and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    return captured.err


def broken_copy(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    return copy, next((copy / "train").iterdir())


def test_missing_folder(capsys, tmp_path):
    assert "nowhere" in complaint(capsys, "train", "--data", tmp_path / "nowhere", "--out", tmp_path / "run")


def test_empty_class(capsys, folder, tmp_path):
    copy, _ = broken_copy(folder, tmp_path)
    for image in (copy / "train" / "anger").iterdir():
        image.unlink()
    assert "anger" in complaint(capsys, "train", "--data", copy, "--out", tmp_path / "run")


def test_unknown_label(capsys, folder, tmp_path):
    copy, _ = broken_copy(folder, tmp_path)
    (copy / "train" / "anger").rename(copy / "train" / "boredom")
    assert "boredom" in complaint(capsys, "train", "--data", copy, "--out", tmp_path / "run")


def test_file_that_is_no_image(capsys, folder, tmp_path):
    copy, _ = broken_copy(folder, tmp_path)
    (copy / "train" / "anger" / "notes.jpg").write_text("<html>not found</html>")
    assert "notes.jpg" in complaint(capsys, "train", "--data", copy, "--out", tmp_path / "run")


def test_short_row_of_a_csv(capsys, tmp_path):
    rng = np.random.default_rng(0)
    rows = [[k % 7, " ".join(map(str, rng.integers(1, 256, 48 * 48))), "Training"] for k in range(30)]
    rows[17][1] = rows[17][1].rsplit(" ", 5)[0]
    with open(tmp_path / "fer2013.csv", "w", newline="") as file:
        csv.writer(file).writerows([["emotion", "pixels", "Usage"], *rows])
    message = complaint(capsys, "train", "--data", tmp_path / "fer2013.csv", "--out", tmp_path / "run")
    assert "17" in message and "2299" in message


def test_weights_of_another_shape(capsys, folder, tmp_path):
    save_file({"conv1.weight": torch.zeros(64, 3, 5, 5)}, tmp_path / "odd.safetensors")
    message = complaint(capsys, "train", "--data", folder, "--out", tmp_path / "run", "--weights", tmp_path / "odd.safetensors")
    assert "odd.safetensors" in message and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("words", "message"), [
    ("train --method mek --consistency nan --out OUT", "consistency=nan"),
    ("train --weights TMP --out OUT", "is a folder: give a file"),
    ("bench --images 4 --batch-size 2 --image-size 32 --workers 0", "7 images or more"),
])
def test_values_that_cannot_be_used(capsys, tmp_path, words, message):
    assert message in complaint(capsys, *words.replace("OUT", str(tmp_path / "run")).replace("TMP", str(tmp_path)).split())
    assert not (tmp_path / "run").exists()


def test_run_folder_in_use(capsys, folder, run):
    assert "not empty" in complaint(capsys, "train", "--data", folder, "--out", run)


def test_evaluate_what_is_no_run(capsys, folder):
    assert "config.json" in complaint(capsys, "evaluate", folder)


def test_damaged_model(capsys, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "damaged" in complaint(capsys, "evaluate", copy)


def test_data_with_other_classes(capsys, run, tmp_path):
    for name in ("fear", "anger"):
        (tmp_path / "two" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "two" / "test" / name / "a.png")
    assert "classes" in complaint(capsys, "evaluate", run, "--data", tmp_path / "two")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(capsys, folder, tmp_path):
    assert "CUDA" in complaint(capsys, "train", "--data", folder, "--out", tmp_path / "run", "--device", "cuda")


def test_finished_run_is_not_resumed(capsys, run):
    assert "finished" in complaint(capsys, "train", "--resume", run)


def test_evaluation_agrees_with_its_predictions(run, tmp_path):
    main(["evaluate", str(run), "--split", "valid", "--json", str(tmp_path / "numbers.json")])
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    rows = list(csv.DictReader((run / "predictions-faces-valid.csv").open()))
    assert numbers == json.loads((run / "evaluation-faces-valid.json").read_text())
    for name, value in numbers["recall"].items():
        mine = [row["prediction"] == name for row in rows if row["label"] == name]
        assert abs(sum(mine) / len(mine) - value) < 1e-9
    assert np.array(numbers["confusion"]).sum() == len(rows) == numbers["count"]


def test_interrupted_and_resumed_run_equals_the_whole(folder, tmp_path):
    """Ctrl-C in the second epoch, exit code 130; the resumed run ends with the very parameters of one that was never stopped."""
    words = ["train", "--method", "rul", "--data", str(folder), "--epochs", "3", "--batch-size", "20", "--device", "cpu"]
    main([*words, "--out", str(tmp_path / "whole")])
    command = [sys.executable, "-c", "from cucn_nb.cli import main; main()", *words, "--out", str(tmp_path / "stopped")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "stopped" / "model.safetensors").exists() and process.poll() is None:  # the first epoch's last file
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert len((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()) < 3
    main(["train", "--resume", str(tmp_path / "stopped")])
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    assert [json.loads(line)["loss"] for line in lines[0]] == [json.loads(line)["loss"] for line in lines[1]]


def test_killed_between_two_files_is_brought_up_to_date(run, folder, tmp_path):
    """The state is the truth: when the process died right after writing it, the other files are written again."""
    words = ["train", "--method", "cross_entropy", "--data", str(folder), "--epochs", "2", "--batch-size", "40", "--device", "cpu"]
    main([*words, "--out", str(tmp_path / "run")])
    expected = {name: tensor.clone() for name, tensor in load_file(tmp_path / "run" / "model.safetensors").items()}  # the file is mapped
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "run" / "metrics.jsonl").write_text(lines[0] + "\n")
    shutil.copy(run / "model.safetensors", tmp_path / "run" / "model.safetensors")
    main(["train", "--resume", str(tmp_path / "run")])
    assert (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() == lines
    mended = load_file(tmp_path / "run" / "model.safetensors")
    assert expected.keys() == mended.keys() and all(torch.equal(expected[name], mended[name]) for name in expected)


def test_an_unfinished_run_says_so(capsys, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["training"]["epochs"] = 3
    (copy / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    main(["evaluate", str(copy), "--split", "valid"])
    assert f"note: unfinished: epoch 1 of 3 is judged; the training goes on with cucn train --resume {copy}\n" in capsys.readouterr().out
    assert json.loads((copy / "evaluation-faces-valid.json").read_text())["finished"] is False
    main(["report", str(copy), "--split", "valid"])
    assert "Training NOT finished: 1 of 3 epochs are done" in (copy / "report-faces-valid.html").read_text()
    assert "evaluation-faces-valid.json" in complaint(capsys, "compare", copy, copy)  # the test split is asked for, another was judged


def test_a_torn_state_is_a_note_and_the_run_says_where_it_goes_on(capsys, folder, tmp_path):
    words = ["train", "--method", "cross_entropy", "--data", str(folder), "--epochs", "2", "--batch-size", "40", "--device", "cpu"]
    main([*words, "--out", str(tmp_path / "run")])
    state = tmp_path / "run" / "state.pt"
    saved = load_state(state)
    save_state({**saved, "epoch": 1, "history": saved["history"][:1]}, state.with_name("state.older.pt"))
    state.write_bytes(state.read_bytes()[:-3])
    capsys.readouterr()
    main(["train", "--resume", str(tmp_path / "run")])
    said = capsys.readouterr()
    assert said.err.startswith(f"cucn: note: {state} is damaged") and said.err.endswith("going on from state.older.pt, the state before it\n")
    assert said.out.startswith("going on in epoch 2 after step 0 of 7\n")


def test_a_resumed_run_takes_what_is_given_also_where_it_is_the_default(capsys, run, tmp_path):
    copy = tmp_path / "the run"
    shutil.copytree(run, copy)
    words = "--method cucn --data faces --seed 0 --preset scratch".split()
    said = complaint(capsys, "train", "--resume", copy, *words)
    assert said == "cucn: --method, --data, --preset, --seed: a resumed run takes this from its folder; leave them out\n"
    record = json.loads((copy / "config.json").read_text())
    other = "no" if record["precision"] == "bf16" else "bf16"  # as on another kind of machine
    (copy / "config.json").write_text(json.dumps({**record, "precision": other, "training": {**record["training"], "epochs": 2}}))
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(copy)])
    assert stop.value.code == 2 and capsys.readouterr().err.endswith("allow=['precision'], as cucn train does for --precision\n")
    main(["train", "--resume", str(copy), "--precision=auto"])
    done = capsys.readouterr().out
    assert f'precision "{other}" -> ' in done and f"cucn evaluate '{copy}'" in done
    assert json.loads((copy / "config.json").read_text())["precision"] == record["precision"]


def test_a_run_can_be_ended_at_the_epochs_it_has(capsys, run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    record = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**record, "training": {**record["training"], "epochs": 8}}))
    main(["train", "--resume", str(copy), "--epochs", "1"])
    assert json.loads((copy / "config.json").read_text())["training"]["epochs"] == 1
    assert "finished: all 1 epochs are done" in complaint(capsys, "train", "--resume", copy)


def test_run_made_in_python_needs_its_data_named(capsys, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    record = json.loads((copy / "config.json").read_text())
    record.pop("source")
    (copy / "config.json").write_text(json.dumps(record))
    assert "--data" in complaint(capsys, "evaluate", copy)
    (copy / "config.json").write_text("{}")
    assert "config.json" in complaint(capsys, "evaluate", copy)


def predictions(capsys, *words):
    """What `cucn predict --json` says."""
    capsys.readouterr()
    main(["predict", *map(str, words), "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_trained_on_grey_images_sees_photographs_in_grey(capsys, folder, tmp_path):
    for path in (folder / "train").rglob("*.png"):
        grey = tmp_path / "grey" / path.relative_to(folder)
        grey.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("L").save(grey)
    main(["train", "--method", "rul", "--data", str(tmp_path / "grey"), "--out", str(tmp_path / "run"), "--epochs", "1", "--device", "cpu"])
    colour, grey = next((folder / "train").rglob("*.png")), next((tmp_path / "grey" / "train").rglob("*.png"))
    a, b = predictions(capsys, tmp_path / "run", colour, grey, "--cropped")
    assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-5)
    main(["explain", str(tmp_path / "run"), str(colour), "--out", str(tmp_path / "maps"), "--cropped"])
    assert Image.open(tmp_path / "maps" / f"{colour.stem}-explained.png").width > 300


def test_predict_and_explain_refuse_what_is_no_image(capsys, run, folder, tmp_path):
    (tmp_path / "note.png").write_text("no image")
    for words in (["predict", run, folder], ["predict", run, tmp_path / "note.png"], ["predict", run, tmp_path / "gone.png"],
                  ["explain", run, tmp_path / "note.png", "--out", tmp_path / "maps"]):
        assert any(name in complaint(capsys, *words) for name in ("note.png", "gone.png", folder.name))


def test_pictures_do_not_overwrite_each_other(capsys, run, folder, tmp_path):
    first = next((folder / "train").rglob("*.png"))
    shutil.copy(first, tmp_path)
    assert first.stem in complaint(capsys, "explain", run, first, tmp_path / first.name, "--out", tmp_path / "maps")
    assert not (tmp_path / "maps").exists()
    mine = tmp_path / f"{first.stem}-explained.png"
    shutil.copy(first, mine)
    assert "overwrite" in complaint(capsys, "explain", run, first, mine, "--out", tmp_path)
    assert mine.read_bytes() == first.read_bytes()


def test_a_refused_command_says_one_line_in_the_shell(run, tmp_path):
    command = [sys.executable, "-c", "from cucn_nb.cli import command; command()"]
    refused = subprocess.run([*command, "evaluate", str(run)], capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "--split valid" in refused.stderr and refused.stdout == ""
    done = subprocess.run([*command, "evaluate", str(run), "--split", "valid"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == "" and "ECE" in done.stdout


def test_a_reader_that_has_seen_enough_is_no_error():
    """`cucn train --help | head -1`: the help is longer than what a pipe holds before anybody reads it."""
    process = subprocess.Popen([sys.executable, "-c", "from cucn_nb.cli import command; command()", "train", "--help"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141


def test_the_page_of_a_run_loads_nothing(run):
    main(["report", str(run), "--split", "valid"])
    page = (run / "report-faces-valid.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:image/|#)", page) and "<script" not in page and "@import" not in page and "url(" not in page


def test_compare_asks_for_judged_runs(capsys, run, tmp_path):
    assert "cucn evaluate" in complaint(capsys, "compare", run, run, "--split", "train")
    assert "no run" in complaint(capsys, "compare", tmp_path, run)


@pytest.mark.parametrize("name", METHODS)
def test_the_options_of_every_method_reach_the_run(name, monkeypatch):
    """Both ways to write them; what is not named is not given."""
    asked = []
    monkeypatch.setattr(Train, "__call__", lambda command: asked.append(command))
    for option, facts in method_options()[name].items():
        value = facts.choices[-1] if facts.choices else 0.25
        flag = f"--{option.replace('_', '-')}"
        for words in ([flag, str(value)], [f"{flag}={value}"]):
            main(["train", "--method", name, "--out", "run", *words])
            command = asked.pop()
            assert command.options == {option: {"yes": True, "no": False}.get(value, value)} and command.given == ("out", "method", option)
    main(["train", "--method", name, "--epochs", "3"])
    assert asked[0].options == {} and asked[0].given == ("method", "epochs") and asked[0].method == name


def test_a_misspelt_method_is_what_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--method", "scm", "--relabel", "all", "--out", "run"])
    assert "scm" in "".join(capsys.readouterr())
    assert "--relabel is an option of scn: cucn takes" in complaint(capsys, "train", "--relabel", "all", "--out", "run")
    assert "--mixing: a resumed run takes this from its folder" in complaint(capsys, "train", "--resume", tmp_path, "--mixing", "half")
