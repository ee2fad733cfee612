"""The runner of experiments keeps its word: one process a cell, nothing lost by a kill, clear errors for what it is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

from cucn_nb import datasets, methods
from cucn_nb.experiments import Grid, read_records, run
from cucn_nb.training import TrainConfig, fit, load_run, read_record

ROOT = Path(__file__).resolve().parent.parent
JOB = """
import sys
from cucn_nb.experiments import Grid, run
from cucn_nb.training import TrainConfig
source, epochs, seeds, results, work = sys.argv[1:]
config = TrainConfig.preset("scratch", epochs=int(epochs), batch_size=32, device="cpu", precision="float32")
run(Grid(source, config, settings=("cross_entropy",), seeds=tuple(range(int(seeds)))), results, work, say=lambda line: print(line, flush=True))
"""


@pytest.fixture(autouse=True)
def _one_thread():
    """As many as the jobs have: sums in another order end in other digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A folder of 140 small faces, 105 to train on."""
    folder, faces = tmp_path_factory.mktemp("few"), datasets.read("faces", "test", image_size=32)
    for k in range(140):
        place = folder / ("train" if k < 105 else "test") / faces.classes[faces.labels[k]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(faces.images[k].permute(1, 2, 0).numpy()).save(place / f"{k}.png")
    return folder


def grid_of(few, **changes):
    config = TrainConfig.preset("scratch", epochs=changes.pop("epochs", 1), batch_size=32, device="cpu", precision="float32")
    return Grid(str(few), config, **{"settings": ("cross_entropy",), "seeds": (0,), **changes})


def job(few, folder, epochs, seeds):
    arguments = [str(few), str(epochs), str(seeds), str(folder / "results"), str(folder / "work")]
    return subprocess.Popen([sys.executable, "-c", JOB, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)


def lasting(record):
    """A record without what differs from run to run."""
    history = [{key: value for key, value in epoch.items() if key not in ("seconds", "images_per_second")} for epoch in record["history"]]
    return {**record, "seconds": None, "history": history, "environment": None}


def test_a_locked_cell_is_left_to_its_process(few, tmp_path):
    said, grid = [], grid_of(few)
    (tmp_path / "work").mkdir()
    with FileLock(tmp_path / "work" / f"{grid.cells()[0].name}.lock"):
        assert run(grid, tmp_path / "results", tmp_path / "work", say=said.append) == []
    assert said == [f"{grid.cells()[0].name}: another process is at it"] and read_records(tmp_path / "results") == []


def test_two_processes_share_a_grid(few, tmp_path):
    both = [job(few, tmp_path, epochs=1, seeds=3) for _ in range(2)]
    lines = [process.communicate(timeout=300)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    done = [line for line in lines[0] + lines[1] if line.endswith(": done")]
    assert len(done) == len(set(done)) == 3 and [r["cell"]["seed"] for r in read_records(tmp_path / "results")] == [0, 1, 2]


@pytest.mark.parametrize("after", ["config.json", "state.pt"])
def test_a_killed_cell_ends_like_one_that_was_not(few, tmp_path, after):
    grid = grid_of(few, epochs=6)
    cell = tmp_path / "work" / grid.cells()[0].name
    process = job(few, tmp_path, epochs=6, seeds=1)
    end = time.monotonic() + 120
    while not (cell / after).exists() and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and cell.exists() and read_records(tmp_path / "results") == []
    (cell / ".state.pt.77.part").write_bytes(b"half of a file")
    (mended,) = run(grid, tmp_path / "results", tmp_path / "work", say=lambda line: None)
    (whole,) = run(grid, tmp_path / "again", tmp_path / "elsewhere", say=lambda line: None)
    assert lasting(mended) == lasting(whole) and len(mended["history"]) == 6


def test_a_record_of_other_images_or_weights_is_refused(few, tmp_path):
    grid = grid_of(few)
    (record,) = run(grid, tmp_path / "results", tmp_path / "work", say=lambda line: None)
    other = tmp_path / "other"
    for path in few.rglob("*.png"):
        (other / path.relative_to(few)).parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).rotate(90).save(other / path.relative_to(few))
    with pytest.raises(ValueError, match=r"seed0\.json was made otherwise .*fingerprints train"):
        run(grid_of(other), tmp_path / "results", tmp_path / "work", say=lambda line: None)
    path = tmp_path / "results" / f"{grid.cells()[0].name}.json"
    text = path.read_text("utf-8")
    path.write_text(text.replace('"weights": "random"', '"weights": "another.pth"'), "utf-8")
    with pytest.raises(ValueError, match=r"weights 'another\.pth', wanted 'random'"):
        run(grid, tmp_path / "results", tmp_path / "work", say=lambda line: None)
    path.write_text(text[:500], "utf-8")
    with pytest.raises(ValueError, match=r"seed0\.json is damaged"):
        run(grid, tmp_path / "results", tmp_path / "work", say=lambda line: None)


def without_sampling(path):
    """Make a record or a config.json what it was before there was a choice of sampling."""
    record = json.loads(path.read_text("utf-8"))
    assert record["training"].pop("sampling") == "shuffled"
    path.write_text(json.dumps(record), "utf-8")


def test_a_record_from_before_the_choice_of_sampling_counts_as_shuffled(few, tmp_path):
    grid, said = grid_of(few), []
    (record,) = run(grid, tmp_path / "results", tmp_path / "work", say=lambda line: None)
    without_sampling(tmp_path / "results" / f"{grid.cells()[0].name}.json")
    (old,) = run(grid, tmp_path / "results", tmp_path / "work", say=said.append)
    assert said == [f"{grid.cells()[0].name}: has a record"] and old["evaluation"] == record["evaluation"] and "sampling" not in old["training"]
    config = TrainConfig.preset("scratch", epochs=1, batch_size=32, device="cpu", precision="float32", sampling="balanced")
    with pytest.raises(ValueError, match="training sampling 'shuffled', wanted 'balanced'"):
        run(Grid(str(few), config, settings=("cross_entropy",), seeds=(0,)), tmp_path / "results", tmp_path / "work", say=lambda line: None)


def test_a_run_from_before_the_choice_of_sampling_loads_and_resumes(few, tmp_path):
    data = datasets.read(str(few), "train", image_size=32)
    train, valid = data.subset(range(0, 105, 2)), data.subset(range(1, 105, 2), split="valid")  # they come class by class
    config = TrainConfig.preset("scratch", epochs=1, batch_size=32, device="cpu", precision="float32")

    def fitted(config, folder, resume=False):
        torch.manual_seed(0)
        method = methods.create("cross_entropy", image_size=32, stem="small", width=16)
        return fit(method, train, valid, config, tmp_path / folder, resume, verbose=False)

    fitted(config, "old")
    without_sampling(tmp_path / "old" / "config.json")
    record, settings = read_record(tmp_path / "old")
    assert settings == config and record["training"]["sampling"] == "shuffled" and load_run(tmp_path / "old").config == config
    text = (tmp_path / "old" / "config.json").read_text("utf-8")
    assert '"notes": []' in text
    (tmp_path / "old" / "config.json").write_text(text.replace('"notes": []', '"notes": ["in other words"]'), "utf-8")
    assert len(fitted(config, "old", resume=True).history) == 1  # the fingerprint binds, not the words about it
    with pytest.raises(ValueError, match=r"training\.sampling: \"shuffled\" in the run, \"balanced\" now"):
        fitted(TrainConfig.preset("scratch", epochs=1, batch_size=32, device="cpu", precision="float32", sampling="balanced"), "old", resume=True)


@pytest.mark.parametrize(("arguments", "message"), [
    (["faces", "--data", "x"], "the other grids take none"), (["fer2013"], "fer2013 takes --data"), (["faces", "--part", "3/2"], "give I/N"),
    (["faces", "--part", "0/0"], "give I/N"), (["faces", "--seeds", "-1"], "--seeds"),
    (["faces", "--epochs", "-1"], "--epochs")])
def test_the_tool_says_what_is_wrong(arguments, message, load, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_experiments.py", *arguments])
    with pytest.raises(SystemExit):
        load(ROOT / "tools" / "run_experiments.py").main()
    assert message in capsys.readouterr().err
