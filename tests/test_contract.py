"""What every method promises, asked of each of them: one test for all that `methods.names` lists."""

import copy
import importlib.util
import json
import re

import pytest
import torch

from cucn_nb import methods
from cucn_nb.checkpoint import load_method, save_method
from cucn_nb.cli import method_options
from cucn_nb.datasets import FaceDataset
from cucn_nb.explain import grad_cam
from cucn_nb.training import TrainConfig, TrainingStep, fit
from cucn_nb.uncertainty import draw_partner

CONTROLS = ("half", "shuffled", "none")  # of the experiments: they leave sigma, or the votes, unused on purpose
KINDS = [(name, {}) for name in methods.names()]  # and every choice that a method has of its own
KINDS += [(name, {option: choice}) for name, options in method_options().items() for option, facts in options.items() for choice in facts.choices
          if option not in ("weight_scheme", "cbam") and choice not in (facts.default, *CONTROLS)]
KINDS += [("cucn", {"cbam": "open"}), ("cucn", {"weight_scheme": "effective"})]
each = pytest.mark.parametrize(("name", "options"), KINDS, ids=["-".join([name, *map(str, options.values())]) for name, options in KINDS])
each_name = pytest.mark.parametrize("name", methods.names())
LABELS = torch.arange(16) % 7


def faces(count=16, side=32, channels=3):
    """Noise with labels, and votes that agree with every second one."""
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(side))
    labels = torch.arange(count) % 7
    votes = 10 * torch.nn.functional.one_hot((labels + torch.arange(count) % 2) % 7, 7).double()
    return FaceDataset(images=images, labels=labels, classes=tuple("abcdefg"), name="noise", split="train", votes=votes, vote_names=tuple("abcdefg"),
                       sources=[str(number) for number in range(count)])


def make(name, options=None, side=32, begun=True):
    """A method as the loop has it before the first step; SCN past the epochs in which it leaves labels alone."""
    torch.manual_seed(0)
    method = methods.create(name, counts=faces().counts + 3, image_size=side, stem="small", width=16, **options or {})
    if begun:
        method.begin(faces())
        method.begin_epoch(12, 30)
    return method


def loss_of(method, images, labels=LABELS, step=None):
    torch.manual_seed(1)  # dropout
    partner = draw_partner(len(labels), torch.Generator().manual_seed(2), labels if method.other_labels else None) if method.mixes else None
    return (method.training_loss if step is None else step)(images, labels, partner, torch.arange(len(labels)))


@each_name
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [32, 64, 112])
def test_answers_have_their_shapes(name, side, channels):
    method = make(name, side=side, begun=False).eval()
    images = torch.rand(3, channels, side, side)
    with torch.no_grad():
        logits, doubt = method.logits_and_uncertainty(images)
        assert logits.shape == (3, 7) and doubt.shape == (3,) and logits.isfinite().all() and doubt.isfinite().all() and (doubt > 0).all()
        assert torch.equal(method(images), logits) and torch.equal(method.uncertainty(images), doubt)
        assert torch.allclose(method(images[:1]), logits[:1], atol=1e-5)  # one image alone
        if channels == 1:
            assert torch.allclose(method(images.expand(-1, 3, -1, -1)), logits, atol=1e-5)


@each
def test_the_gradient_is_the_slope_of_the_loss(name, options):
    """Central differences in float64 along random directions.

    Two things are held fixed on purpose, so what comes through them is no part of the gradient: EAC and MEK read their maps from the classifier
    without training it (its parameters stay out of the directions), and WSFER's side network reads features without training them (what it
    has read is kept for the differences).
    """
    method, images = make(name, options).double(), torch.rand(16, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    fixed = {key: value.clone() for key, value in method.state_dict().items()}
    free = [(key, p) for key, p in method.named_parameters() if p.requires_grad and not (name in ("eac", "mek") and key.startswith("classifier."))]
    if name == "wsfer":
        torch.nn.init.normal_(method.aids.noise[2].weight)  # a residual, which is nought at the start
        fixed["aids.noise.2.weight"] = method.aids.noise[2].weight.detach().clone()
        method.aids.noise.register_forward_pre_hook(lambda module, inputs, read=[]: (read or read.append(inputs[0].detach())) and None or (read[0],))
    loss_of(method, images)[0].backward()
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        way = {key: torch.randn(p.shape, dtype=torch.float64, generator=generator) * p.detach().std(correction=0).clamp(min=1e-3) for key, p in free}
        slope, ends = sum(float((p.grad * way[key]).sum()) for key, p in free), []
        for step in (1e-7, -1e-7):
            method.load_state_dict({key: value + step * way[key] if key in way else value for key, value in fixed.items()})
            with torch.no_grad():
                ends.append(float(loss_of(method, images)[0]))
        assert abs((ends[0] - ends[1]) / 2e-7 - slope) < 1e-4 * max(0.1, abs(slope)), (slope, ends)


# whose derivative is nought: a bias in front of a batch norm, which takes it away again; what stands behind a gain or a layer that starts at nought
IDLE = {"rul": ("mu.3.bias", "log_var.3.bias"), "cucn": ("mu.3.bias", "log_var.3.bias", ".cbam.spatial.conv.weight"),
        "wsfer": ("aids.noise.0.weight", "aids.noise.0.bias"), "dacl": ("attention.1.bias", "attention.4.bias", "attention.7.bias")}


@each
def test_every_parameter_gets_a_finite_gradient(name, options):
    method = make(name, options).double()
    loss, log = loss_of(method, torch.rand(16, 3, 32, 32, dtype=torch.float64))
    loss.backward()
    assert next(iter(log)) == "loss" and all(value.shape == () and not value.requires_grad for value in log.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
    idle = {key for key, p in method.named_parameters() if p.requires_grad and p.grad.abs().max() < 1e-12}
    assert idle == {key for key, _ in method.named_parameters() if key.endswith(IDLE.get(name, ()))}, idle
    groups = method.parameter_groups(1.0, 2.0)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, method.parameters()))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert all(rate[id(p)] == (2.0 if re.match(r"(aids\.)?classifiers?\.", key) else 1.0) for key, p in method.named_parameters())


@each
def test_twenty_steps_reduce_the_loss(name, options):
    method, images = make(name, options), faces().images.float() / 255
    optimiser, losses = torch.optim.Adam(method.parameters(), lr=1e-3), []
    for _ in range(21):
        loss, log = loss_of(method, images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(log["loss"]))
    assert losses[-1] < 0.9 * losses[0], losses


@each
@pytest.mark.parametrize("labels", [LABELS % 6, torch.full((16,), 3)], ids=["a class missing", "one class only"])
def test_batches_without_some_classes(name, options, labels):
    method = make(name, options)
    loss, _ = loss_of(method, torch.rand(16, 1, 32, 32), labels)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
    with torch.no_grad():
        assert loss_of(method.eval(), torch.rand(1, 3, 32, 32), labels[:1])[0].isfinite()


@each
def test_the_same_seed_gives_the_same_bits_and_the_file_the_same_answers(name, options, tmp_path):
    def train():
        return fit(make(name, options, begun=False), faces(), faces(), TrainConfig(epochs=1, batch_size=8, device="cpu", precision="float32"),
                   verbose=False).method

    one, two = train(), train()
    ours, theirs = one.state_dict(), two.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert json.loads(json.dumps(one.settings)) == one.settings
    save_method(one, tmp_path / "model.safetensors", tuple("abcdefg"))
    read, _ = load_method(tmp_path / "model.safetensors")
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        for a, b in zip(read.logits_and_uncertainty(images), one.logits_and_uncertainty(images), strict=True):
            assert torch.allclose(a, b, atol=1e-5)  # the memory format, and with it the order of sums, may differ
    assert not any(key.startswith("aids.") for key in read.state_dict())


@each
def test_bfloat16_changes_little(name, options):
    method, images = make(name, options), torch.rand(16, 3, 32, 32)
    exact = loss_of(copy.deepcopy(method), images)[0].item()
    with torch.autocast("cpu", torch.bfloat16):
        loss, log = loss_of(method, images)
    loss.backward()
    assert all(value.dtype in (torch.float32, torch.float64) for value in (loss, log["loss"]))
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
    assert abs(loss.item() - exact) < 0.05 * abs(exact), (loss.item(), exact)


@each_name
def test_a_traced_step_computes_the_same(name):
    """torch.compile's tracing, in one piece, without the compiler behind it, which takes a minute a method. DMUE's branches see as many
    images as there are, so it is traced in pieces."""
    method, images = make(name), torch.rand(16, 3, 32, 32)
    other = copy.deepcopy(method)
    torch._dynamo.reset()
    loss, _ = loss_of(method, images)
    traced, _ = loss_of(other, images, step=torch.compile(TrainingStep(other), backend="eager", fullgraph=name != "dmue"))
    loss.backward()
    traced.backward()
    assert torch.allclose(loss, traced, rtol=1e-5)
    theirs = other.state_dict()
    assert all(torch.allclose(value.float(), theirs[key].float(), atol=1e-5) for key, value in method.state_dict().items())
    pairs = zip(method.parameters(), other.parameters(), strict=True)
    assert all(torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5) for p, q in pairs if p.requires_grad)


@each_name
def test_grad_cam_has_a_map_for_each_image(name):
    method = make(name, begun=False).eval()
    maps = grad_cam(method, torch.rand(2, 3, 32, 32))
    assert maps.shape == (2, 32, 32) and maps.isfinite().all() and maps.min() >= 0 and 0 < maps.max() <= 1


@each_name
def test_the_answers_can_be_exported(name):
    method, images = make(name, begun=False).eval(), torch.rand(2, 3, 32, 32)
    program = torch.export.export(method, (images,), strict=False)
    with torch.no_grad():
        assert torch.allclose(program.module()(images), method(images), atol=1e-5)


@pytest.mark.skipif(not all(map(importlib.util.find_spec, ("onnxscript", "onnxruntime"))), reason="onnxscript and onnxruntime are not installed")
@each_name
def test_the_answers_can_be_exported_to_onnx(name):
    import onnxruntime

    method, images = make(name, begun=False).eval(), torch.rand(2, 3, 32, 32)
    exported = torch.onnx.export(method, (images,), dynamo=True)
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    answers = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    assert torch.allclose(torch.from_numpy(answers), method(images).detach(), atol=1e-4)
