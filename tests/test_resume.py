"""Going on with a run whose folder is damaged, whose settings change, or that was stopped at a bad moment."""

import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cucn_nb import augment, backbone, batches, checkpoint, guard, methods, training
from cucn_nb.checkpoint import load_state, older_state, save_state
from cucn_nb.datasets import FaceDataset
from cucn_nb.guard import FiniteGuard
from cucn_nb.methods import scn
from cucn_nb.training import TrainConfig, TrainingError, _Engine, fit, load_run

CONFIG = TrainConfig(epochs=2, batch_size=8, schedule="exponential", device="cpu", precision="float32")


def noise(count=24, channels=3):
    images = torch.randint(0, 256, (count, channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return FaceDataset(images=images, labels=torch.arange(count) % 7, classes=tuple("abcdefg"), name="noise", split="train",
                       sources=[str(number) for number in range(count)])


def make(name="cross_entropy"):
    torch.manual_seed(0)
    return methods.create(name, counts=noise().counts, image_size=32, width=16)


def train(folder, config=CONFIG, name="cross_entropy", **options):
    return fit(make(name), noise(), noise(), config, folder, verbose=False, **options)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_is_that_of_the_activations(channels_last):
    engine, seen = _Engine(make(), noise(), replace(CONFIG, channels_last=channels_last)), []
    for module in engine.method.modules():
        if isinstance(module, backbone.PatchConv2d):
            module.LARGEST = 0  # where maps are small it computes in a format of its own
    engine.method.get_submodule("backbone.layer2.0.conv1").register_forward_hook(lambda module, inputs, output: seen.append(output))
    engine.train_on(next(engine.batches.epoch(0)))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == channels_last
    assert seen[0].is_contiguous() != channels_last


def test_the_memory_format_can_change_in_a_run(tmp_path):
    """Fused Adam reads parameter and moments in the order of memory: a moment in another order would go to another weight."""
    unchanged = train(tmp_path / "unchanged")
    train(tmp_path / "run", replace(CONFIG, epochs=1))
    changed = train(tmp_path / "run", replace(CONFIG, channels_last=False), resume=True, allow=["training.channels_last"])
    theirs, state = unchanged.method.state_dict(), changed.method.state_dict()
    apart = max(float((value.float() - theirs[name].float()).abs().max()) for name, value in state.items())
    assert apart < 0.02, apart  # sums in another order; moments in the wrong order give 0.5
    engine = _Engine(make(), noise(), replace(CONFIG, channels_last=False))
    training._restore(engine, load_state(tmp_path / "unchanged" / "state.pt"), tmp_path / "unchanged")
    for parameter, moments in engine.optimiser.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()


def late(patch):
    """Answers come one step late, as they do from a GPU."""
    original = FiniteGuard.__init__

    def begin(guard, *arguments):
        original(guard, *arguments)
        guard._lag = 1
    patch.setattr(FiniteGuard, "__init__", begin)


@pytest.mark.parametrize("save_seconds", [0.0, 1000.0])
def test_a_bad_step_whose_answer_comes_late_is_not_saved(tmp_path, monkeypatch, save_seconds):
    """A signal comes in that very step, or a save is due after it."""
    late(monkeypatch)
    original, signals = _Engine.loss, [signal.SIGTERM] if save_seconds else []

    def bad(engine, step, batch):
        loss, log = original(engine, step, batch)
        if (engine.place.epoch, batch.step) != (0, 1):
            return loss, log
        if signals:
            signal.raise_signal(signals.pop())
        return loss * float("nan"), log

    with monkeypatch.context() as patch:
        patch.setattr(_Engine, "loss", bad)
        with pytest.raises(TrainingError, match="epoch 1, step 2: the loss is not finite"):
            train(tmp_path / "run", save_seconds=save_seconds)
    state = load_state(tmp_path / "run" / "state.pt")
    assert state["step"] == 1 and state["logs"].isfinite().all()
    train(tmp_path / "run", resume=True)
    train(tmp_path / "whole")
    ours, theirs = (load_state(tmp_path / name / "state.pt")["method"] for name in ("run", "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_compiled_step_is_explained_by_layer(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    method = make()
    torch.nn.init.constant_(method.backbone.layer2[0].conv1.weight, float("inf"))
    data = noise()
    with pytest.raises(TrainingError, match=r"step 1: backbone\.layer2\.0\.conv1\.weight, already before the step, is not finite"):
        fit(method, data, data, replace(CONFIG, compile=True), verbose=False)
    method = make()
    with torch.no_grad():
        method.backbone.layer2[0].bn1.running_mean.fill_(0)
        method.backbone.layer2[0].bn1.weight.fill_(3e38)
        method.backbone.layer2[0].conv2.weight.fill_(1e30)
    with pytest.raises(TrainingError, match=r"step 1: the output of backbone\.layer2\.0\.(bn1|conv2) is not finite"):
        fit(method, data, data, replace(CONFIG, compile=True), verbose=False)


class BlockingCopies(TorchDispatchMode):
    """Counts copies from the CPU to another device for which the CPU would wait; the "meta" device stands for any."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        source = arguments[1] if "copy_" in str(function) else arguments[0] if arguments else None
        to = result if isinstance(result, torch.Tensor) else None
        blocking = not (options or {}).get("non_blocking") and not ("copy_" in str(function) and len(arguments) > 2 and arguments[2])
        copied = "copy" in str(function) and isinstance(source, torch.Tensor) and to is not None
        if copied and (source.device.type, to.device.type) == ("cpu", "meta"):
            self.found[str(function), blocking] += 1
        return result


def test_nothing_in_a_batch_waits_for_the_device():
    data = noise()
    held = batches.Batches(data, 8, 0, "cpu")
    held.images, held.labels = held.images.to("meta"), held.labels.to("meta")
    with BlockingCopies() as copies:
        for batch in held.epoch(0):
            images = augment.augment(batch.images, augment.Augmentation(flip=0.5, shift=0.1, erase=0.5), torch.Generator().manual_seed(0))
    assert images.device.type == "meta" and sum(copies.found.values()) >= 10
    assert not [name for name, blocking in copies.found if blocking]
    with BlockingCopies() as copies:
        torch.arange(3).to("meta")
    assert [blocking for _, blocking in copies.found] == [True]  # the count above can be other than zero


def test_what_is_copied_to_a_gpu_is_pinned_and_in_one_piece(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking=False: (tensor, device, non_blocking))
    copied, device, non_blocking = augment.to_device(torch.arange(10)[1::2], torch.device("cuda"))
    assert copied is pinned[0] and copied.is_contiguous() and copied.tolist() == [1, 3, 5, 7, 9] and device.type == "cuda" and non_blocking


def test_a_run_without_a_folder_does_not_ask_to_be_saved_in_every_step(monkeypatch):
    """On a GPU the question alone costs time: it waits for the answer of the last step."""
    asked, all_finite = [], FiniteGuard.all_finite
    monkeypatch.setattr(FiniteGuard, "all_finite", lambda guard: asked.append(guard) or all_finite(guard))
    clock = iter(range(0, 10**6, 25))  # 25 seconds each time that somebody looks
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(clock)), perf_counter=time.perf_counter))
    run = train(None, replace(CONFIG, batch_size=4))
    assert run.complete and 3 <= len(asked) <= 6  # of 12 steps


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_last_save_is_not_forgotten(tmp_path, monkeypatch, capsys, number):
    original = training._Folder.save

    def save(folder, engine, whole_epoch=False, state=True):
        original(folder, engine, whole_epoch, state)
        if engine.place.epoch == CONFIG.epochs:
            signal.raise_signal(number)

    monkeypatch.setattr(training._Folder, "save", save)
    with pytest.raises(training.TrainingStopped) as stopped:
        train(tmp_path / "run")
    assert stopped.value.code == 128 + number and stopped.value.run.complete and load_run(tmp_path / "run").complete
    assert f"stopped by {number.name} after the last epoch; all is saved" in capsys.readouterr().err


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_right_after_an_epoch_leaves_its_model(tmp_path, monkeypatch, epoch):
    """Between the step into the next epoch and its save there is one moment; a slow terminal makes it long."""
    def say(line, flush):
        if line.startswith(f"epoch   {epoch}/2"):
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(training.TrainingStopped):
        patch.setattr(training, "print", lambda line, flush=False, file=None: say(line, flush), raising=False)
        fit(make(), noise(), noise(), CONFIG, tmp_path / "run")
    stopped = load_run(tmp_path / "run")
    assert len(stopped.history) == epoch and stopped.complete == (epoch == 2)
    state = load_state(tmp_path / "run" / "state.pt")["method"]
    assert all(torch.equal(value, state[name]) for name, value in stopped.method.state_dict().items())


@pytest.mark.parametrize("largest", [1e25, 1e38])
def test_a_gradient_too_large_to_be_squared_changes_nothing(tmp_path, monkeypatch, largest):
    """Adam's second moments were infinite from then on, and their parameters never moved again."""
    original = _Engine.loss

    def steep(engine, step, batch):
        loss, log = original(engine, step, batch)
        return loss * (largest if (engine.place.epoch, batch.step) == (1, 1) else 1), log

    monkeypatch.setattr(_Engine, "loss", steep)
    with pytest.raises(TrainingError, match=r"epoch 2, step 2: the gradient of .*, or its square, is not finite"):
        train(tmp_path / "run")
    state = load_state(tmp_path / "run" / "state.pt")
    moments = [value for kept in state["optimiser"]["state"].values() for value in kept.values()]
    assert (state["epoch"], state["step"]) == (1, 1) and moments and all(value.isfinite().all() for value in moments)


@pytest.mark.parametrize("name", methods.names())
def test_the_scale_of_the_backward_pass_changes_no_bit(monkeypatch, name):
    scaled = train(None, name=name).method.state_dict()
    monkeypatch.setattr(guard, "SCALE", 1.0)
    plain = train(None, name=name).method.state_dict()
    assert all(torch.equal(value, scaled[key]) for key, value in plain.items())


def test_spoilt_parameters_are_not_judged(tmp_path, monkeypatch):
    """The guard looks at gradients; a last step that is finite and far too long is found by what the network answers."""
    original = training._train_epoch

    def spoil(engine, folder, stop):
        original(engine, folder, stop)
        with torch.no_grad():
            engine.method.classifier.weight.fill_(3e38)

    monkeypatch.setattr(training, "_train_epoch", spoil)
    with pytest.raises(ValueError, match="noise/train: the network's answer to 24 of 24 images is not finite: its parameters are spoilt"):
        train(tmp_path / "run")


def test_the_losses_before_a_bad_first_step_are_those_of_the_epoch_before(monkeypatch):
    original = _Engine.loss

    def bad(engine, step, batch):
        loss, log = original(engine, step, batch)
        return loss * (float("nan") if engine.place.epoch == 1 else 1), log

    monkeypatch.setattr(_Engine, "loss", bad)
    with pytest.raises(TrainingError, match=r"epoch 2, step 1: .*; the losses before it: [0-9.]+, the mean of an epoch\. Go on with a lower"):
        train(None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_never_waits_for_the_gpu(precision):
    policy = augment.Augmentation(0.5, 0.1, 0.5, 0.5)
    engine = _Engine(make("cucn"), noise(), replace(CONFIG, device="cuda", precision=precision, augmentation=policy))
    engine.step.train()
    for number, batch in enumerate(engine.batches.epoch(0)):
        if number:
            torch.cuda.set_sync_debug_mode("error")
        try:
            engine.train_on(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert engine.place.step == engine.batches.steps == 3 and engine.guard.all_finite()


def test_a_damaged_newest_state_is_mended_before_the_next_save(tmp_path):
    """A kill between the two renames of the save after a damage once left no whole state."""
    train(tmp_path / "run", replace(CONFIG, epochs=1))
    train(tmp_path / "run", replace(CONFIG, epochs=2), resume=True)
    path = tmp_path / "run" / "state.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with mock.patch.object(training, "_train_epoch", side_effect=KeyboardInterrupt), pytest.warns(UserWarning, match="going on from state.older.pt"):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", resume=True)
    assert path.read_bytes() == older_state(path).read_bytes()
    with mock.patch.object(os, "replace", side_effect=[None, OSError("killed here")]), pytest.raises(OSError):
        save_state({"epoch": 9}, path)
    assert load_state(path)["epoch"] == 1


def damage(folder, how):
    config, state = folder / "config.json", folder / "state.pt"
    if how == "config.json cut":
        config.write_text(config.read_text()[:300])
    elif how == "config.json without data":
        config.write_text(json.dumps({name: value for name, value in json.loads(config.read_text()).items() if name != "data"}))
    elif how == "config.json no text":
        config.write_bytes(b"\xff\xfe" + config.read_bytes())
    elif how == "config.json with words for numbers":
        config.write_text(config.read_text().replace('"epochs": 1', '"epochs": "1"'))
    elif how == "state without optimiser":
        kept = load_state(state)
        del kept["optimiser"]
        save_state(kept, state)
    elif how == "state of another method":
        train(folder.with_name("other"), replace(CONFIG, epochs=1), name="mek")
        state.write_bytes((folder.with_name("other") / "state.pt").read_bytes())
    return folder


@pytest.mark.parametrize(("how", "message"), [
    ("config.json cut", r"config\.json is damaged: "),
    ("config.json without data", r"config\.json is damaged: 'data' is missing in it"),
    ("config.json no text", r"config\.json is damaged: 'utf-8' codec"),
    ("config.json with words for numbers", r"config\.json is damaged: epochs='1' must be a whole number"),
    ("state of another method", r"state\.pt does not fit .*config\.json: it is the state of another run \(.*\)$"),
    ("state without optimiser", r"state\.pt is no state of a run: it holds no optimiser"),
])
def test_a_damaged_folder_is_named(tmp_path, how, message):
    train(tmp_path / "run", replace(CONFIG, epochs=1))
    damage(tmp_path / "run", how)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", resume=True)


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl"])
def test_a_file_that_is_missing_or_damaged_is_named_and_can_be_written_again(tmp_path, name):
    path = tmp_path / "run" / name
    train(tmp_path / "run")
    whole = path.read_bytes()
    for content in (whole[:-20], b"\xff\xfe" + whole):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_run(tmp_path / "run")
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name} does not exist: .* written again by fit\(\.\.\., resume=True\)"):
        load_run(tmp_path / "run")
    assert train(tmp_path / "run", resume=True).complete and path.read_bytes() == whole and load_run(tmp_path / "run").complete


@pytest.mark.parametrize("content", [None, "", "{", "[]"])
def test_lost_notes_on_the_machine_are_made_anew(tmp_path, content):
    train(tmp_path / "run", replace(CONFIG, epochs=1))
    path = tmp_path / "run" / "environment.json"
    path.unlink() if content is None else path.write_text(content)
    train(tmp_path / "run", resume=True)
    assert json.loads(path.read_text())["torch"] == torch.__version__.split("+")[0]


def test_fewer_epochs_than_are_done_are_refused(tmp_path):
    train(tmp_path / "run")
    for step in (0, 1):  # of the third epoch
        save_state({**load_state(tmp_path / "run" / "state.pt"), "step": step}, tmp_path / "run" / "state.pt")
        with pytest.raises(ValueError, match=f"has {2 + step} epochs done or begun, {1 + step} are asked for"):
            train(tmp_path / "run", replace(CONFIG, epochs=1 + step), resume=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["training"]["epochs"] == 2


def test_where_nothing_is_whole_both_files_are_named(tmp_path):
    train(tmp_path / "run", save_seconds=0)
    for name in ("state.pt", "state.older.pt"):
        (tmp_path / "run" / name).write_bytes((tmp_path / "run" / name).read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"state\.pt is damaged.*; .*state\.older\.pt is damaged.*: there is nothing to go on from, begin anew"):
        train(tmp_path / "run", resume=True)


def test_equal_runs_have_equal_model_files(tmp_path):
    for name in ("one", "other"):
        train(tmp_path / name)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "other" / "model.safetensors").read_bytes()


def test_a_resumed_run_says_where_it_goes_on(tmp_path, capsys):
    train(tmp_path / "run", replace(CONFIG, epochs=1))
    notes = tmp_path / "run" / "environment.json"
    notes.write_text(json.dumps({**json.loads(notes.read_text()), "threads": 99}))
    fit(make(), noise(), noise(), replace(CONFIG, lr=0.5), tmp_path / "run", resume=True, allow=["training.lr"])
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("going on in epoch 2 after step 0 of 3; training.epochs 1 -> 2; training.lr 0.002 -> 0.5; not to the same bits")
    assert first.endswith(f"since this is new: threads {torch.get_num_threads()}")


def test_a_first_step_that_is_bad_leaves_no_untrained_model(tmp_path, monkeypatch):
    original = _Engine.loss

    def bad(*arguments):
        loss, log = original(*arguments)
        return loss * float("inf"), log

    with monkeypatch.context() as patch:
        patch.setattr(_Engine, "loss", bad)
        with pytest.raises(TrainingError, match="epoch 1, step 1"):
            train(tmp_path / "run")
    with mock.patch.object(training, "_train_epoch", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", resume=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_validation_classes_in_another_order_are_refused():
    with pytest.raises(ValueError, match="give both the same, in the same order"):
        fit(make(), noise(), replace(noise(), classes=tuple("bacdefg")), CONFIG, verbose=False)


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for resume in (False, True):
        with pytest.raises(ValueError, match="file is a file: name a folder for the run"):
            train(tmp_path / "file", resume=resume)


@pytest.mark.parametrize(("name", "value"), [("epochs", 1.5), ("batch_size", 8.0), ("seed", "0")])
def test_numbers_that_must_be_whole(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r} must be a whole number"):
        TrainConfig(**{name: value})


def test_the_changes_to_allow_are_a_list(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(ValueError, match=r"is a text: give a list of names, allow=\['training.lr'\]"):
        train(tmp_path / "run", replace(CONFIG, lr=0.1), resume=True, allow="training.lr")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0, -1.0])
def test_a_rate_that_is_no_rate_is_refused(value):
    with pytest.raises(ValueError, match="must be above 0 and finite"):
        TrainConfig(lr=value)


def test_the_state_brings_a_finished_runs_model_back(tmp_path, capsys):
    from cucn_nb.cli import main  # not above: the tests for a GPU run where tyro is not installed

    run = tmp_path / "run"
    command = [*"train --method cross_entropy --data faces --image-size 32 --epochs 1 --batch-size 512 --out".split(), str(run)]
    with mock.patch.object(training, "evaluate", lambda method, data, _=training.evaluate: _(method, data.subset(torch.arange(0, len(data), 9)))):
        assert not main(command)
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(run)])
    assert "finished: all 1 epochs are done" in capsys.readouterr().err
    (run / "model.safetensors").write_bytes(before[:1000])
    assert not main(["train", "--resume", str(run)])
    assert checkpoint.load_method(run / "model.safetensors")[1] == load_run(run).classes


def test_what_only_training_needs_is_in_the_state_and_not_in_the_model(tmp_path, monkeypatch):
    """SCN's exchanged labels: a run that goes on has them, and a model that answers does not."""
    monkeypatch.setattr(scn, "RELABEL_FROM", 1)
    monkeypatch.setattr(scn, "THRESHOLD", 0.0)
    config = replace(CONFIG, epochs=4)
    whole = train(tmp_path / "whole", config, "scn").method
    train(tmp_path / "run", replace(CONFIG, epochs=2), "scn")
    exchanged = load_state(tmp_path / "run" / "state.pt")["method"]["aids.labels"]
    resumed = train(tmp_path / "run", config, "scn", resume=True).method
    assert not torch.equal(exchanged, noise().labels) and not torch.equal(exchanged, resumed.aids.labels)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    loaded = load_run(tmp_path / "run").method
    assert not hasattr(loaded, "aids") and {key for key in resumed.state_dict() if not key.startswith("aids.")} == loaded.state_dict().keys()
    images = noise().images.float() / 255
    assert torch.allclose(loaded(images), resumed.eval()(images), rtol=1e-4, atol=1e-5)  # sums may come in another order
