"""The loop with odd batches, for many steps, and with a step that is not finite."""

import gc
from pathlib import Path

import pytest
import torch

from cucn_nb import methods, training
from cucn_nb.datasets import FaceDataset
from cucn_nb.training import TrainConfig, TrainingError, fit


def noise(labels):
    images = torch.randint(0, 256, (len(labels), 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = [str(number) for number in range(len(labels))]
    return FaceDataset(images=images, labels=labels, classes=tuple("abcdefg"), name="noise", split="train", sources=names)


ODD = {
    "one image more than two batches": (torch.arange(17) % 7, 8),
    "a class missing": (torch.arange(16) % 6, 8),
    "all one class": (torch.full((12,), 3), 6),
    "a batch larger than the set": (torch.arange(9) % 7, 64),
    "two images": (torch.tensor([0, 6]), 2),
}


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("kind", ODD)
def test_odd_batches_train_every_image_once(name, kind):
    labels, batch_size = ODD[kind]
    data = noise(labels)
    torch.manual_seed(0)
    method = methods.create(name, counts=torch.full((7,), 10), image_size=32, width=16)
    before = method.classifier.weight.detach().clone()
    run = fit(method, data, data, TrainConfig(epochs=1, batch_size=batch_size, device="cpu", precision="float32"), verbose=False)
    assert run.complete and not torch.equal(before, method.classifier.weight)
    assert all(value.isfinite().all() for value in method.state_dict().values())
    recall = run.history[0]["valid"]["recall"]
    assert [recall[c] is None for c in data.classes] == (data.counts == 0).tolist()  # a class without images has no recall
    engine = training._Engine(method, data, TrainConfig(batch_size=batch_size, device="cpu", precision="float32"))
    positions = torch.cat([batch.position for batch in engine.batches.epoch(0)])
    sizes = [len(b.labels) for b in engine.batches.epoch(0)]
    assert positions.sort().values.tolist() == list(range(len(labels))) and min(sizes) >= 2 and max(sizes) - min(sizes) <= 1


def test_one_image_alone_is_refused():
    with pytest.raises(ValueError, match="at least 2 images"):
        fit(methods.create("cross_entropy", image_size=32, width=16), noise(torch.tensor([1])), noise(torch.tensor([1])), TrainConfig(device="cpu"))


def resident():
    """Megabytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_memory_stays_flat_over_2000_steps():
    """The loop's own memory: a network of one convolution, so that nothing hides in a large one."""
    class Small(methods.Method):
        def __init__(self):
            trunk = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, 4), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
            trunk.weights_origin = "random"
            super().__init__(7, trunk, 8)
            self.settings = {"image_size": 32}

        def logits_and_uncertainty(self, images):
            logits = self.classifier(self.backbone(self.prepare(images)).mean((2, 3)))
            return logits, 1 - logits.softmax(1).amax(1)

        def training_loss(self, images, labels, partner=None, rows=None):
            loss = torch.nn.functional.cross_entropy(self(images), labels)
            return loss, {"loss": loss.detach()}

    data, seen, tensors = noise(torch.arange(400) % 7), [], []
    engine = training._Engine(Small(), data, TrainConfig(epochs=42, batch_size=8, device="cpu", precision="float32"))
    engine.step.train()
    for epoch in range(42):  # of 50 steps
        for batch in engine.batches.epoch(epoch):
            engine.train_on(batch)
            assert engine.guard.first_bad() is None
        engine.place = training._Place(epoch + 1)
        seen.append(resident())
        tensors.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
    assert len(seen) * engine.batches.steps == 2100
    assert max(seen[2:]) < 1.01 * seen[1], seen  # after 100 steps
    assert tensors[-1] <= tensors[1], tensors


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("place", ["backbone.layer2.0.conv1", "classifier"])
def test_a_gradient_that_overflows_changes_nothing(name, place):
    """The forward pass is finite: only the gradient, on its way back through one layer, is not."""
    data = noise(torch.arange(21) % 7)
    torch.manual_seed(0)
    method = methods.create(name, counts=data.counts, image_size=32, width=16)
    layer, steps = method.get_submodule(place), []

    def spoil(module, inputs, output):
        if module.training and output.requires_grad:
            steps.append(output)
            if len(steps) >= (4 if name in ("eac", "mek") and place != "classifier" else 2):  # these compute the trunk twice a step
                output.register_hook(lambda gradient: gradient * float("inf"))

    layer.register_forward_hook(spoil)
    kept = {}
    original = training._Engine.train_on

    def train_on(engine, batch, stop):
        kept.clear()
        kept.update({key: value.clone() for key, value in method.state_dict().items()})
        original(engine, batch, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Engine, "train_on", train_on)
        with pytest.raises(TrainingError, match=r"epoch 1, step 2: the gradient of .* is not finite; images \d+.* of noise/train"):
            fit(method, data, data, TrainConfig(epochs=1, batch_size=7, device="cpu", precision="float32"), verbose=False)
    assert kept and all(torch.equal(value, kept[key]) for key, value in method.state_dict().items())


def test_a_first_step_that_is_not_finite_leaves_sgd_as_it_was(tmp_path):
    """PyTorch makes the momentum in the first step; had that step been bad, it would be whatever the memory held."""
    data = noise(torch.arange(21) % 7)
    config = TrainConfig(epochs=3, batch_size=7, optimiser="sgd", schedule="thirds", device="cpu", precision="float32")
    original = training._Engine.loss

    def make():
        torch.manual_seed(0)
        return methods.create("cross_entropy", counts=data.counts, image_size=32, width=16)

    def bad(engine, step, batch):
        loss, log = original(engine, step, batch)
        return loss * float("nan"), log

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Engine, "loss", bad)
        with pytest.raises(TrainingError, match="epoch 1, step 1: the loss is not finite"):
            fit(make(), data, data, config, tmp_path / "run", verbose=False)
    resumed = fit(make(), data, data, config, tmp_path / "run", resume=True, verbose=False)
    whole = fit(make(), data, data, config, tmp_path / "whole", verbose=False)
    theirs = whole.method.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in resumed.method.state_dict().items())
