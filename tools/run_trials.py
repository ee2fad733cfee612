"""Try schedules on validation images, for the book's experiments and for `make demo`; each trial that results/trials.json lacks is run.

    python tools/run_trials.py                    the embedded faces
    python tools/run_trials.py --data FOLDER      those on FER2013
    python tools/run_trials.py --part 2/3         every third of them from the second on

No test image is read.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from cucn_nb import datasets, methods, protocols
from cucn_nb.checkpoint import write_atomic
from cucn_nb.experiments import SETTINGS, _as_text
from cucn_nb.progress import judge_progress, loss_bounds
from cucn_nb.training import TrainConfig, environment, fit

RECORD = Path(__file__).resolve().parent.parent / "results" / "trials.json"
TRUNK = Path("results") / "networks" / "faces_trunk.safetensors"
Trial = tuple[str, str, dict[str, Any], dict[str, Any]]  # source, setting, options of the method, changes of the preset, seed and start
MEK: list[Trial] = [("faces", "mek", {"consistency": factor}, {}) for factor in (0.07, 0.3, 1.4)]
FER2013: list[Trial] = [("fer2013", "cross_entropy", {}, {"lr": lr, "epochs": 10}) for lr in (1e-3, 2e-3, 4e-3)]
DEMO: list[Trial] = [("faces", "cucn-open", {}, {"seed": seed, "weights": TRUNK.name, "epochs": 17}) for seed in (0, 1, 2)]
TRIALS = [*MEK, *FER2013, *DEMO]


def run_trial(source: str, data: str, setting: str, options: dict[str, Any], changes: dict[str, Any], device: str) -> dict[str, Any]:
    """Train once and keep the curves."""
    of_config = {name: value for name, value in changes.items() if name != "weights"}
    of_config |= {"classifier_lr": changes["lr"]} if "lr" in changes else {}
    config = replace(TrainConfig.preset("scratch", precision="float32", device=device), **of_config)
    train, valid = protocols.stratified_split(datasets.read(data, "train"), 0.1, config.seed)
    name, own = SETTINGS[setting]
    weights = str(RECORD.parent.parent / TRUNK) if "weights" in changes else None
    torch.manual_seed(config.seed)
    method = methods.create(name, train.num_classes, train.counts, train.image_size, stem="small", width=16, weights=weights,
                            **{**own, **options})
    history = fit(method, train, valid, config, verbose=False).history
    bounds = loss_bounds(method, train.counts)
    return {"source": source, "setting": setting, "options": options, **{name: changes[name] for name in ("seed", "weights") if name in changes},
            "image_size": train.image_size, "stem": "small", "width": 16,
            "epochs": config.epochs, "batch_size": config.batch_size, "lr": config.lr, "warm_up": config.warm_up,
            "way": judge_progress(history, config.epochs, bounds, valid.counts.tolist()).way, "loss": [entry["loss"] for entry in history],
            "consistency": [entry["consistency"] for entry in history] if "consistency" in history[-1] else None,
            **{f"valid_{key}": [entry["valid"][key] for entry in history] for key in ("loss", "mean", "worst", "overall")},
            "valid_recall": history[-1]["valid"]["recall"], "environment": environment(method.mean.device)}


def main() -> None:
    """Run the trials that have no record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or csv of FER2013: run its trials instead of those on the embedded faces")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every N-th trial from the I-th on")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    arguments = parser.parse_args()
    index, _, of = arguments.part.partition("/")
    if not (index.isdigit() and of.isdigit() and 1 <= int(index) <= int(of)):
        parser.error(f"--part {arguments.part}: give I/N, such as 2/3")
    record = json.loads(RECORD.read_text("utf-8"))
    wanted = [trial for trial in TRIALS if (trial[0] == "fer2013") == (arguments.data is not None)]
    for source, setting, options, changes in wanted[int(index) - 1::int(of)]:
        asked = {"source": source, "setting": setting, "options": options, **changes}
        if any(all(trial.get(key) == value for key, value in asked.items()) for trial in record["trials"]):
            continue
        trial = run_trial(source, arguments.data or source, setting, options, changes, arguments.device)
        with FileLock(Path(tempfile.gettempdir()) / "trials.lock"):
            record = json.loads(RECORD.read_text("utf-8"))  # another process may have written meanwhile
            record["trials"].append(trial)
            write_atomic(RECORD, _as_text(record))
        print(f"{asked}: validation mean {trial['valid_mean'][-1]:.3f}, way {trial['way']:.2f}", flush=True)


if __name__ == "__main__":
    main()
