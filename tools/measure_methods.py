"""Measure what each method costs beside a plain network: parameters, a training step, an answer. Some minutes on two cores.

    python tools/measure_methods.py            into results/methods.json

Each method is timed in turns with plain cross-entropy, so that a slow phase of the machine meets both. Nothing else should run meanwhile.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from cucn_nb import bench, methods, training
from cucn_nb.checkpoint import write_atomic
from cucn_nb.datasets import FaceDataset
from cucn_nb.training import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
SIZES: list[tuple[dict[str, Any], int, int]] = [  # the network, images a step, turns
    ({"image_size": 64, "stem": "small", "width": 16}, 32, 12), ({"image_size": 224, "stem": "imagenet", "width": 64}, 8, 4)]


def faces(count: int, side: int) -> FaceDataset:
    """Noise with labels: what a step costs does not depend on what is to be seen."""
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return FaceDataset(images=images, labels=torch.arange(count) % 7, classes=tuple("abcdefg"), name="noise", split="train",
                       sources=[str(number) for number in range(count)])


def prepared(name: str, network: dict[str, Any], batch_size: int) -> tuple[Any, dict[str, Any], dict[str, int]]:
    """An engine, what is to be timed, and the parameters that answers and training need."""
    data = faces(2 * batch_size, network["image_size"])
    torch.manual_seed(0)
    method = methods.create(name, counts=data.counts, **network)
    engine = training._Engine(method, data, TrainConfig(batch_size=batch_size, device="cpu", precision="float32"))
    method.begin_epoch(15, 30)
    batch, images = next(engine.batches.epoch(0)), data.images[:batch_size].float() / 255

    def step() -> None:
        method.train()
        engine.train_on(batch)

    def answer() -> None:
        method.eval()
        with torch.inference_mode():
            method(images)

    aids = sum(p.numel() for p in method.aids.parameters()) if hasattr(method, "aids") else 0
    return engine, {"step": step, "answer": answer}, {"answer": sum(p.numel() for p in method.parameters()) - aids, "training only": aids}


def measure(name: str, network: dict[str, Any], batch_size: int, turns: int) -> dict[str, Any]:
    """A method against plain cross-entropy: medians, and the median ratio of the turns with the middle half of them."""
    plain, ours = prepared("cross_entropy", network, batch_size), prepared(name, network, batch_size)
    calls = {(whose, what): made[1][what] for what in ("step", "answer") for whose, made in (("plain", plain), ("ours", ours))}
    seconds = bench.time_in_turns(calls, turns)
    found: dict[str, Any] = {"method": name, "network": network, "batch_size": batch_size, "parameters": ours[2]}
    for what in ("step", "answer"):
        ratios = [a / b for a, b in zip(seconds["ours", what], seconds["plain", what], strict=True)]
        found[what] = {"seconds": seconds["ours", what], "plain_seconds": seconds["plain", what], "ratio": statistics.median(ratios),
                       "middle_half": [statistics.quantiles(ratios, n=4)[k] for k in (0, 2)]}
    return found


def main() -> None:
    """Measure all methods at both sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=ROOT / "results" / "methods.json")
    parser.add_argument("--methods", nargs="+", choices=methods.names(), default=methods.names())
    arguments = parser.parse_args()
    rows = []
    for network, batch_size, turns in SIZES:
        for name in arguments.methods:
            rows.append(measure(name, network, batch_size, turns))
            print(f"{network['image_size']:4d} {name:14} step {rows[-1]['step']['ratio']:.2f}  answer {rows[-1]['answer']['ratio']:.2f}", flush=True)
    write_atomic(arguments.record, json.dumps({"environment": training.environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
