"""Training in two processes: what is equal to training in one, and what is not."""

import copy
import json
import re
import subprocess
import sys

import pytest
import torch

from cucn_nb import datasets, methods
from cucn_nb.batches import Batches
from cucn_nb.checkpoint import load_state
from cucn_nb.datasets import FaceDataset

HEAD = """
import hashlib, json, os, sys
import torch
from unittest import mock
from torch import nn
from cucn_nb import methods, metrics, training
from cucn_nb.datasets import FaceDataset

torch.set_num_threads(1)
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
out = sys.argv[1]
g = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (98, 1, 32, 32), dtype=torch.uint8, generator=g)
data = FaceDataset(images=images, labels=torch.arange(98) ** 2 % 7, classes=tuple("abcdefg"), name="noise", split="train", sources=["noise"] * 98)
torch.manual_seed(0)


def describe(method, **facts):
    parameters = {name: p.detach().double().flatten()[:: max(1, p.numel() // 50)].tolist() for name, p in method.named_parameters()}
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in method.parameters())).hexdigest()
    return {"digest": digest, "parameters": parameters, **facts}


def write(facts):
    with open(f"{out}-{world}-{rank}.json", "w") as file:
        json.dump(facts, file)
"""

AS_IT_IS = HEAD + """
method = methods.create("cucn", counts=data.counts + 1, image_size=32, width=16)
before = method.classifier.weight.detach().clone()
config = training.TrainConfig(epochs=2, batch_size=16, device="cpu", precision="float32")
run = training.fit(method, data, data.subset(torch.arange(20)), config, out)
judged = metrics.evaluate(run.method, data.subset(torch.arange(20))).confusion.sum()
write(describe(method, judged=int(judged), moved=float((method.classifier.weight - before).abs().max()), losses=[h["loss"] for h in run.history],
               valid=[h["valid"] for h in run.history]))
"""

# In float64, without dropout and augmentation, with frozen batch statistics and the same pairs inside each share. 98 images in batches of 13
# and 12: shares of 7 and 6 images; three epochs are 24 steps.
EXACT = HEAD + """
from cucn_nb.methods import remedy, scn

remedy.DEFERRED = 0.5  # LDAM weighs classes in the last of three epochs
scn.RELABEL_FROM, scn.THRESHOLD = 0, -1.0  # every label is exchanged for the answer, from the first step on


def pairs(count, stream, labels=None):
    if world == 2:
        return torch.arange(count).roll(1)
    whole = torch.arange(count)  # image k of the batch is image k // 2 of share k % 2
    for share in (0, 1):
        whole[share::2] = whole[share::2].roll(1)
    return whole


def train(name, **changes):
    torch.manual_seed(0)
    options = {"scn": {"relabel": "all"}, "ldam": {"remedy": "ldam"}}.get(name, {})
    method = methods.create("remedy" if name == "ldam" else name, counts=data.counts + 1, image_size=32, width=16, **options).double()
    for key, value in changes.items():
        setattr(method, key, value)
    epochs = 1 if name == "scn" else 3
    config = training.TrainConfig(epochs=epochs, batch_size=13, lr=1e-3, classifier_lr=1e-3, schedule="exponential", device="cpu",
                                  precision="float32")
    losses, before = [], {name: p.detach().clone() for name, p in method.named_parameters()}
    with mock.patch.object(training, "draw_partner", pairs), mock.patch.object(training, "augment", lambda images, *_: images.double() / 255):
        engine = training._Engine(method, data, config)
        for module in method.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.eval()
                module.train = lambda mode=True, module=module: module
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        for epoch in range(config.epochs):
            method.begin_epoch(epoch, config.epochs)
            engine.step.train()
            for batch in engine.batches.epoch(epoch):
                engine.train_on(batch)
            means = engine.accelerator.reduce(torch.stack(engine.place.logs).mean(0), "mean")
            losses.append(float(means[0]))
            engine.place = training._Place(epoch + 1)
    moved = max(float((p - before[name]).abs().max()) for name, p in method.named_parameters() if name in before)
    shares = sorted({len(b.labels) for b in engine.batches.epoch(0)})
    kept = [value.tolist() for value in getattr(method, "aids", nn.Module()).buffers()]
    return describe(method, steps=config.epochs * engine.batches.steps, losses=losses, shares=shares, moved=moved, kept=kept)


write({name: train(name) for name in [*methods.names(), "ldam"]} | {"own weights": train("cucn", batch_weight=lambda labels: torch.ones(()))})
"""


# A run that one process is told to stop, in the middle of an epoch or while it judges; one whose bad images only the other sees.
STOPPED = HEAD + """
import signal, warnings

order, folder = sys.argv[2], out + "-" + sys.argv[2]
method = methods.create("cucn", counts=data.counts + 1, image_size=32, width=16)
config = training.TrainConfig(epochs=2, batch_size=16, device="cpu", precision="float32")
valid, engine = data.subset(torch.arange(20)), training._Engine
told, save, judge = [], training.save_state, training.evaluate


def step(self, batch, stop, original=engine.train_on):
    if order == "step" and rank == 1 and not told and (self.place.epoch, batch.step) == (0, 2):
        told.append(signal.raise_signal(signal.SIGTERM))
    original(self, batch, stop)


def judging(*arguments):
    if order == "judge" and not told:
        told.append(signal.raise_signal(signal.SIGTERM))  # both of them
    return judge(*arguments)


def loss(self, step, batch, original=engine.loss):
    found, log = original(self, step, batch)
    return (found * float("nan") if order == "bad" and rank == 1 and batch.step == 1 else found), log


def slowly(*arguments):
    __import__("time").sleep(1)  # time enough for the other one to end first, if it did not wait
    save(*arguments)


with mock.patch.multiple(engine, train_on=step, loss=loss), mock.patch.multiple(training, evaluate=judging, save_state=slowly):
    try:
        run = training.fit(method, data, valid, config, folder, resume="again" in sys.argv, verbose=False, save_seconds=1000.0)
    except training.TrainingError as error:
        os.write(1, f"{rank} {error}\\n".encode())  # in one piece: two processes share the pipe
        raise
"""


def run(script, folder, processes):
    (folder / "script.py").write_text(script)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, str(folder / "script.py"), str(folder / "run")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads((folder / f"run-{processes}-{rank}.json").read_text()) for rank in range(processes)]


def test_two_processes_agree(tmp_path):
    first, second = run(AS_IT_IS, tmp_path, 2)
    assert first["moved"] > 1e-4
    assert first["digest"] == second["digest"]  # different images on each, equal parameters: gradients are synchronised
    assert first["losses"] == second["losses"]  # the mean over both, though each saw its own images
    assert first["valid"] != second["valid"]  # statistics of the first are sent to the second before each step, so they differ by the last one
    assert first["judged"] == second["judged"] == 20
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def noise():
    return FaceDataset(images=torch.zeros(98, 1, 32, 32, dtype=torch.uint8), labels=torch.arange(98) ** 2 % 7, classes=tuple("abcdefg"), name="noise",
                       split="train", sources=["noise"] * 98)


def torchrun(folder, *words):
    (folder / "stopped.py").write_text(STOPPED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run([*launcher, str(folder / "stopped.py"), str(folder / "run"), *words], capture_output=True, text=True, timeout=300)


def lines(folder):
    """What the epochs logged, but for times."""
    return [{key: value for key, value in json.loads(line).items() if key not in ("seconds", "images_per_second")}
            for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert torchrun(folder, "whole").returncode == 0
    return lines(folder / "run-whole")


@pytest.mark.parametrize("order", ["step", "judge"])
def test_two_processes_stop_together_and_go_on(tmp_path, undisturbed, order):
    """Told to stop, one of them or both, they save, end after the same step, and later log what an undisturbed run logs."""
    stopped = torchrun(tmp_path, order)
    assert stopped.returncode != 0 and stopped.stderr.count("stopped by SIGTERM in epoch") == 1, stopped.stderr[-2000:]
    assert "; saved; go on with" in stopped.stderr
    state = load_state(tmp_path / f"run-{order}" / "state.pt")
    assert (state["epoch"], state["step"]) in ([(0, 3)] if order == "step" else [(1, 1)])
    again = torchrun(tmp_path, order, "again")
    if order == "judge":  # they are told again while they judge the last epoch, after which all is done
        assert again.returncode != 0 and again.stderr.count("stopped by SIGTERM after the last epoch; all is saved") == 1, again.stderr[-2000:]
        assert len(lines(tmp_path / "run-judge")) == 2
    else:
        assert again.returncode == 0, again.stderr[-2000:]
    ours = lines(tmp_path / f"run-{order}")
    assert [line["loss"] for line in ours] == [line["loss"] for line in undisturbed]
    assert [line["sigma"] for line in ours] == [line["sigma"] for line in undisturbed]


def test_the_process_with_the_bad_images_names_them(tmp_path):
    result = torchrun(tmp_path, "bad")
    said = [line for line in result.stdout.splitlines() if "is not finite" in line]
    assert len(said) == 2 and {line[:1] for line in said} == {"0", "1"} and said[0][2:] == said[1][2:]
    assert "epoch 1, step 2: the loss is not finite; images" in said[0]
    named = {int(number) for number in re.findall(r"\d+", said[0].split("images ")[1].split(" of ")[0])}
    shares = [set(next(Batches(noise(), 16, 0, "cpu", rank, 2).epoch(0, 1)).position.tolist()) for rank in (0, 1)]
    assert named == shares[1] and named.isdisjoint(shares[0])


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """What one process trains, and each of two."""
    folder = tmp_path_factory.mktemp("exact")
    return run(EXACT, folder, 1)[0], *run(EXACT, folder, 2)


def apart(one, other):
    return max(abs(a - b) for part, values in one["parameters"].items() for a, b in zip(values, other["parameters"][part], strict=True))


WHOLE_BATCH = {"scn", "ad_corre", "dmue", "t21dst"}  # their loss compares the rows of a batch, so that of its parts is another


@pytest.mark.parametrize("name", [name for name in [*methods.names(), "ldam"] if name not in WHOLE_BATCH])
def test_two_processes_train_what_one_does(exact, name):
    one, first, second = (run[name] for run in exact)
    assert one["steps"] >= 20 and one["moved"] > 1e-3 and one["shares"] == [12, 13]
    assert first["digest"] == second["digest"] and first["shares"] == [6, 7] and second["shares"] == [6]
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-6)  # in float32
    assert apart(one, first) < 1e-12
    for alone, together in zip(one["kept"], first["kept"], strict=True):  # such as DACL's centers
        assert torch.allclose(torch.tensor(alone, dtype=torch.float64), torch.tensor(together, dtype=torch.float64), rtol=0, atol=1e-12)


def test_two_processes_keep_the_same_answers(exact):
    assert exact[1]["ad_corre"]["kept"] == exact[2]["ad_corre"]["kept"]


def test_two_processes_hold_the_same_labels(exact):
    """Each sees its part of a batch, and both learn what the other one exchanged."""
    one, first, second = (run["scn"] for run in exact)
    assert first["digest"] == second["digest"] and first["kept"] == second["kept"]
    given, labels, _ = first["kept"]
    assert given == one["kept"][0] == noise().labels.tolist()
    assert sum(a != b for a, b in zip(given, labels, strict=True)) > 55  # more than the 50 that one of them saw in its one epoch


def test_without_its_share_a_process_would_train_something_else(exact):
    """The test above can fail: each process divides by its own weights alone."""
    assert apart(exact[0]["own weights"], exact[0]["cucn"]) == 0 and apart(exact[1]["own weights"], exact[0]["cucn"]) > 1e-6


def test_the_weight_of_a_batch_is_what_its_loss_is_divided_by():
    """For every method: two halves, weighed by it, have the loss of the whole."""
    faces = datasets.read("faces", "train", image_size=32).subset(torch.arange(12))
    images, labels = faces.images.double() / 255, faces.labels
    for name in set(methods.names()) - WHOLE_BATCH:
        torch.manual_seed(0)
        method = methods.create(name, counts=torch.arange(1, 8) * 10, image_size=32, width=16).double()
        method.begin(faces)
        method.eval()
        halves = [torch.arange(0, 8), torch.arange(8, 12)]
        partner = torch.cat([half.roll(1) for half in halves])
        with torch.no_grad():
            whole = copy.deepcopy(method).training_loss(images, labels, partner, torch.arange(12))[0]  # a copy: DACL's centers move
            parts = [copy.deepcopy(method).training_loss(images[half], labels[half], torch.arange(len(half)).roll(1), half)[0] for half in halves]
        weights = [method.batch_weight(labels[half]) for half in halves]
        together = sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
        assert abs(float(together / whole) - 1) < 1e-12, name
