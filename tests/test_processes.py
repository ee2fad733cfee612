"""Training in two processes: what is equal to training in one, and what is not."""

import json
import subprocess
import sys

import pytest
import torch

from cucn_nb import datasets, methods

HEAD = """
import hashlib, json, os, sys
import torch
from unittest import mock
from torch import nn
from cucn_nb import methods, training, uncertainty
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
method = methods.create("cucn", counts=data.counts + 1, image_size=32)
before = method.classifier.weight.detach().clone()
config = training.TrainConfig(epochs=2, batch_size=16, device="cpu", precision="float32")
run = training.fit(method, data, data.subset(torch.arange(20)), config, out)
write(describe(method, moved=float((method.classifier.weight - before).abs().max()), losses=[h["loss"] for h in run.history],
               valid=[h["valid"] for h in run.history]))
"""

# In float64, without dropout and augmentation, with frozen batch statistics and the same pairs inside each share. 98 images in batches of 15: shares
# of 8 and 7 images, and a last batch of 8; three epochs are 21 steps.
EXACT = HEAD + """
def pairs(count, stream):
    if world == 2:
        return torch.arange(count).roll(1)
    whole = torch.arange(count)  # image k of the batch is image k // 2 of share k % 2
    for share in (0, 1):
        whole[share::2] = whole[share::2].roll(1)
    return whole


def train(name, **changes):
    torch.manual_seed(0)
    method = methods.create(name, counts=data.counts + 1, image_size=32).double()
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eval()
            module.train = lambda mode=True, module=module: module
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for key, value in changes.items():
        setattr(method, key, value)
    config = training.TrainConfig(epochs=3, batch_size=15, lr=1e-3, classifier_lr=1e-3, schedule="exponential", device="cpu", precision="float32")
    losses, before = [], {name: p.detach().clone() for name, p in method.named_parameters()}
    with mock.patch.object(training, "draw_partner", pairs), mock.patch.object(training, "augment", lambda images, *_: images.double() / 255):
        engine = training._Engine(method, data, config)
        for epoch in range(config.epochs):
            engine.step.train()
            for batch in engine.batches.epoch(epoch):
                engine.train_on(batch)
            means = engine.accelerator.reduce(torch.stack(engine.place.logs).mean(0), "mean")
            losses.append(float(means[0]))
            engine.place = training._Place(epoch + 1)
    moved = max(float((p - before[name]).abs().max()) for name, p in method.named_parameters())
    shares = sorted({len(b.labels) for b in engine.batches.epoch(0)})
    return describe(method, steps=config.epochs * engine.batches.steps, losses=losses, shares=shares, moved=moved)


write({name: train(name) for name in methods.names()} | {"own weights": train("cucn", batch_weight=lambda labels: torch.ones(()))})
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
    assert first["valid"] != second["valid"]  # each has the running statistics of its own shares; those of the first are saved
    right = 20 * first["valid"][0]["overall"]
    assert abs(right - round(right)) < 1e-5  # each of the 20 images is counted once
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """What one process trains, and each of two."""
    folder = tmp_path_factory.mktemp("exact")
    return run(EXACT, folder, 1)[0], *run(EXACT, folder, 2)


def apart(one, other):
    return max(abs(a - b) for part, values in one["parameters"].items() for a, b in zip(values, other["parameters"][part], strict=True))


@pytest.mark.parametrize("name", methods.names())
def test_two_processes_train_what_one_does(exact, name):
    one, first, second = (run[name] for run in exact)
    assert one["steps"] >= 20 and one["moved"] > 1e-3 and one["shares"] == [8, 15]
    assert first["digest"] == second["digest"] and first["shares"] == [4, 8] and second["shares"] == [4, 7]
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-6)  # in float32
    assert apart(one, first) < 1e-12


def test_without_its_share_a_process_would_train_something_else(exact):
    """The test above can fail: each process divides by its own weights alone."""
    assert apart(exact[0]["own weights"], exact[0]["cucn"]) == 0 and apart(exact[1]["own weights"], exact[0]["cucn"]) > 1e-6


def test_the_weight_of_a_batch_is_what_its_loss_is_divided_by():
    """For every method: two halves, weighed by it, have the loss of the whole."""
    faces = datasets.read("faces", "train", image_size=32).subset(torch.arange(12))
    images, labels = faces.images.double() / 255, faces.labels
    for name in methods.names():
        torch.manual_seed(0)
        method = methods.create(name, counts=torch.arange(1, 8) * 10, image_size=32).double().eval()
        halves = [torch.arange(0, 8), torch.arange(8, 12)]
        partner = torch.cat([half.roll(1) for half in halves])
        with torch.no_grad():
            whole = method.training_loss(images, labels, partner)[0]
            parts = [method.training_loss(images[half], labels[half], torch.arange(len(half)).roll(1))[0] for half in halves]
        weights = [method.batch_weight(labels[half]) for half in halves]
        together = sum(w * part for w, part in zip(weights, parts, strict=True)) / sum(weights)
        assert abs(float(together / whole) - 1) < 1e-12, name
