"""Trainings that are killed, terminated, interrupted, or run out of disk, and end like those that were not. Short here; whole with `make soak`."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import safe_open

from cucn_nb import checkpoint, methods, training
from cucn_nb.checkpoint import load_state, older_state, save_state
from cucn_nb.datasets import FaceDataset
from cucn_nb.training import TrainConfig, TrainingError, _Engine, fit

SOAK = "SOAK" in os.environ
pytestmark = [pytest.mark.soak] if SOAK else []
CONFIG = TrainConfig(epochs=2, batch_size=12, device="cpu", precision="float32")


@pytest.fixture(autouse=True)
def _one_thread():
    """As many as the processes have: sums in another order end in other digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(count):
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    names = [str(number) for number in range(count)]
    return FaceDataset(images=images, labels=torch.arange(count) % 7, classes=tuple("abcdefg"), name="noise", split="train", sources=names)


def train(folder, name, save_seconds=0.0, config=CONFIG, pause=0.0):
    """Begin a run, or go on with it; `pause` seconds before each step make it long enough to be disturbed."""
    torch.set_num_threads(1)
    if pause:
        step = _Engine.train_on
        _Engine.train_on = lambda engine, batch, stop: (time.sleep(pause), step(engine, batch, stop))
    resume = any(folder.glob("state*.pt"))
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    images = noise(36)
    method = methods.create(name, counts=images.counts, image_size=32, stem="small", width=16)
    return fit(method, images, noise(14), config, folder, resume=resume, verbose=False, save_seconds=save_seconds)


def start(*arguments, target=train):
    """Train in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cucn_nb.training", "cucn_nb.methods", "accelerate", "torchvision", "torchmetrics"])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def end_of(folder):
    """All that a run leaves, but for times."""
    def untimed(history):
        return [{key: value for key, value in entry.items() if key not in ("seconds", "images_per_second")} for entry in history]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = load_state(folder / "state.pt")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    state = {**state, "history": untimed(state["history"]), "seconds": 0}
    with safe_open(folder / "model.safetensors", "pt") as file:
        model = {**file.metadata(), **{name: file.get_tensor(name) for name in file.keys()}}
    return {"state": state, "metrics": untimed(lines), "model": model,
            "config": (folder / "config.json").read_bytes(), "names": sorted(path.name for path in folder.iterdir())}


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of each method that nobody disturbed, made when it is first asked for: what it left, and the seconds it took."""
    kept = {}
    start(target=int).join()  # the imports are not timed

    def run(name):
        if name not in kept:
            folder = tmp_path_factory.mktemp("whole") / name
            begin = time.monotonic()
            process = start(folder, name)
            process.join()
            assert process.exitcode == 0
            kept[name] = end_of(folder), time.monotonic() - begin
            shutil.rmtree(folder)
        return kept[name]
    return run


@pytest.fixture
def record(request):
    """Writes what a test counted into results/soak.json, if this is the whole form."""
    def write(**facts):
        print(facts)
        if SOAK:
            path = Path(__file__).resolve().parent.parent / "results" / "soak.json"
            known = json.loads(path.read_text("utf-8")) if path.exists() else {}
            lines = {"environment": training.environment(), **known, request.node.name: facts}.items()
            path.write_text("{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in lines) + "\n}\n", "utf-8")
    return write


@pytest.mark.parametrize(("name", "kills"), [(name, 25 if SOAK else 5 if name == "cucn" else 1) for name in methods.names()])
def test_killed_at_a_random_moment(tmp_path, whole, record, name, kills):
    expected, seconds = whole(name)
    chance, hits, places, tries = random.Random(f"kill {name}"), 0, [], 0
    while hits < kills and tries < 4 * kills:
        tries += 1
        folder = tmp_path / f"run{tries}"
        process = start(folder, name)
        process.join(chance.uniform(0, seconds))
        process.kill()
        process.join()
        hits += process.exitcode == -signal.SIGKILL
        there = any(folder.glob("state*.pt"))
        places.append([load_state(folder / "state.pt")[key] for key in ("epoch", "step")] if there else None)
        train(folder, name)
        assert equal(end_of(folder), expected), f"killed after {places[-1]}"
        shutil.rmtree(folder)
    assert hits == kills
    record(kills=hits, equal_to_the_bit=tries, tries=tries, seconds_of_a_run=round(seconds, 2), saved_up_to=places)


def test_killed_again_while_it_resumes(tmp_path, whole, record):
    expected, seconds = whole("cucn")
    chance, hits = random.Random("again"), 0
    for _ in range(5):
        process = start(tmp_path / "run", "cucn", 0.0, CONFIG, 0.3)
        process.join(chance.uniform(0.2, 0.6) * seconds)
        process.kill()
        process.join()
        hits += process.exitcode == -signal.SIGKILL
    train(tmp_path / "run", "cucn")
    assert equal(end_of(tmp_path / "run"), expected) and hits >= 2
    record(kills_in_a_row=hits)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_finishes_its_step(tmp_path, whole, number, code):
    expected, seconds = whole("cucn")
    process = start(tmp_path / "run", "cucn", 1000.0, CONFIG, 0.5)  # six steps; nothing is saved but by the signal
    wait_for(tmp_path / "run" / "environment.json")
    time.sleep(1)
    os.kill(process.pid, number)
    begin = time.monotonic()
    process.join()
    assert process.exitcode == code and time.monotonic() - begin < 2 + 0.5 + seconds / 2  # a step, and saving it
    assert load_state(tmp_path / "run" / "state.pt")["epoch"] < 2
    train(tmp_path / "run", "cucn")
    assert equal(end_of(tmp_path / "run"), expected | {"names": sorted(path.name for path in (tmp_path / "run").iterdir())})


def test_the_second_signal_ends_it_at_once(tmp_path):
    """The first is noted and the step, which takes half a minute, goes on; the second does not wait for it."""
    process = start(tmp_path / "run", "cross_entropy", 1000.0, CONFIG, 30.0)
    wait_for(tmp_path / "run" / "environment.json")
    time.sleep(2)
    os.kill(process.pid, signal.SIGTERM)
    process.join(2)
    assert process.exitcode is None
    os.kill(process.pid, signal.SIGTERM)
    process.join(5)
    assert process.exitcode == -signal.SIGTERM


def wait_for(path):
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} was not written"
        time.sleep(0.01)


@pytest.mark.parametrize("harm", ["truncation", "bit flip"])
def test_torn_states_are_found(tmp_path, record, harm):
    chance, path = random.Random(harm), tmp_path / "state.pt"
    for number in range(2):
        save_state({"number": number, "tensor": torch.randn(5000, generator=torch.Generator().manual_seed(number))}, path)
    content, older = path.read_bytes(), older_state(path).read_bytes()
    for _ in range(100):
        torn = bytearray(content)
        if harm == "truncation":
            torn = torn[:chance.randrange(len(torn))]
        else:
            torn[chance.randrange(len(torn))] ^= 1 << chance.randrange(8)
        path.write_bytes(torn)
        with pytest.warns(UserWarning, match="going on from state.older.pt"):
            assert load_state(path)["number"] == 0
        assert older_state(path).read_bytes() == older
    record(found=100, of=100)


def test_a_torn_state_of_a_run_costs_one_save(tmp_path, whole):
    expected, _ = whole("rul")
    train(tmp_path / "run", "rul")
    path = tmp_path / "run" / "state.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match="going on from state.older.pt"):
        train(tmp_path / "run", "rul")
    assert equal(end_of(tmp_path / "run"), expected)


@pytest.fixture
def little_room(tmp_path):
    """A disk that holds one state and a little more; where none can be mounted, None."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], capture_output=True).returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_costs_the_save_and_not_the_run(little_room, whole, record):
    if little_room is None:
        pytest.skip("no tmpfs can be mounted here: the next test lets writes fail instead")
    expected, _ = whole("cross_entropy")
    with pytest.warns(UserWarning, match="No space left on device.*the training goes on"):
        with pytest.raises(TrainingError, match="the last save failed"):
            train(little_room / "run", "cross_entropy")
    assert load_state(little_room / "run" / "state.pt")["epoch"] < 2  # one that fitted
    assert not list((little_room / "run").glob(".*.part"))
    subprocess.run(["mount", "-o", "remount,size=60m", little_room], check=True)
    train(little_room / "run", "cross_entropy")
    assert equal(end_of(little_room / "run"), expected)
    record(full_disk="tmpfs of 16 MB", resumed_to="the same bits")


@pytest.mark.parametrize("every", [3, 4])
def test_whatever_write_fails_the_old_state_stays(tmp_path, whole, record, every):
    expected, _ = whole("cross_entropy")
    original, failed = checkpoint.write_atomic, []

    def fails(path, *rest):
        """Every third or fourth write fails: of the state, the model, the metrics."""
        fails.calls += 1
        if fails.calls % every == 0:
            failed.append(Path(path).name)
            raise OSError(28, "No space left on device")
        original(path, *rest)

    fails.calls = 0
    everywhere = mock.patch.object(checkpoint, "write_atomic", fails), mock.patch.object(training, "write_atomic", fails)
    with everywhere[0], everywhere[1], warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            train(tmp_path / "run", "cross_entropy")
        except TrainingError as error:
            assert "the last save failed" in str(error) and error.run.complete
    assert len(failed) >= 2 and len([w for w in heard if "could not be written" in str(w.message)]) == len(failed)
    assert load_state(tmp_path / "run" / "state.pt")["epoch"] >= 1
    train(tmp_path / "run", "cross_entropy")
    assert equal(end_of(tmp_path / "run"), expected)
    record(failed_writes=failed)


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path):
    calls, sync, replace = [], os.fsync, os.replace
    checkpoint.write_atomic(tmp_path / "state.pt", "old")

    def noted(kind, call):
        def wrapper(*arguments):
            calls.append((kind, *(Path(a).name.replace(str(os.getpid()), "PID") for a in arguments if not isinstance(a, int))))
            return call(*arguments)
        return wrapper

    with mock.patch.object(os, "fsync", noted("fsync", sync)), mock.patch.object(os, "replace", noted("replace", replace)):
        checkpoint.write_atomic(tmp_path / "state.pt", "new", tmp_path / "state.older.pt")
    assert calls == [("fsync",), ("replace", "state.pt", "state.older.pt"), ("replace", ".state.pt.PID.part", "state.pt"), ("fsync",)]
