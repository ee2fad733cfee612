"""Measure the gradient of every step where the last batch of an epoch is a rest of two images, and where batches are alike in size.

    python tools/measure_rest.py      five minutes on two cores; writes results/rest_batch.json

CUCN from the trunk and with open gates, the first four of fourteen epochs, with the seed whose 4,450 training images leave
two over after 139 batches of 32.
"""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cucn_nb import batches, datasets, methods, protocols, training
from cucn_nb.checkpoint import write_atomic
from cucn_nb.guard import SCALE, FiniteGuard

ROOT = Path(__file__).resolve().parent.parent
TRUNK = ROOT / "results" / "networks" / "faces_trunk.safetensors"
SEED, EPOCHS, WATCHED = 2, 14, 4


def usual_cut(order: torch.Tensor, batch_size: int, smallest: int = 2) -> list[torch.Tensor]:
    """Full batches and a rest."""
    return list(order.split(batch_size))


class Watched(FiniteGuard):
    """Notes loss and gradient norm of every step."""

    def after(self, loss: torch.Tensor, step: Any, stop: bool = False) -> None:
        norms = [(p.grad / SCALE).norm() for p in self._parameters if p.grad is not None]
        STEPS.append((round(loss.item(), 4), round(torch.stack(norms).norm().item(), 3)))
        super().after(loss, step, stop)


STEPS: list[tuple[float, float]] = []


def watch(cut: Any) -> dict[str, Any]:
    """Train the first epochs and give loss and norm of every step, an epoch a row."""
    STEPS.clear()
    train, _ = protocols.stratified_split(datasets.read("faces", "train"), 0.1, SEED)
    torch.manual_seed(SEED)
    method = methods.create("cucn", train.num_classes, train.counts, train.image_size, stem="small", width=16, weights=str(TRUNK), cbam="open")
    config = training.TrainConfig.preset("scratch", seed=SEED, epochs=EPOCHS, device="cpu", precision="float32")
    with mock.patch.object(batches, "cut_into_batches", cut), mock.patch.object(training, "FiniteGuard", Watched):
        engine = training._Engine(method, train, config)
        sizes = [len(batch.labels) for batch in engine.batches.epoch(0)]
        engine.step.train()
        for epoch in range(WATCHED):
            engine.place = training._Place(epoch)
            for batch in engine.batches.epoch(epoch):
                engine.train_on(batch)
    rows = [STEPS[k:k + len(sizes)] for k in range(0, len(STEPS), len(sizes))]
    return {"sizes": [min(sizes), max(sizes)], "steps": len(sizes), "loss": [[loss for loss, _ in row] for row in rows],
            "norm": [[norm for _, norm in row] for row in rows]}


def main() -> None:
    """Train both ways and write the record."""
    record = {"method": "cucn", "cbam": "open", "weights": TRUNK.name, "seed": SEED, "batch_size": 32, "epochs": EPOCHS, "watched": WATCHED,
              "rest": watch(usual_cut), "even": watch(batches.cut_into_batches), "environment": training.environment("cpu")}
    for name in ("rest", "even"):
        worst = [max(row) for row in record[name]["norm"]]
        print(f"{name}: largest gradient norm by epoch {worst}")
    write_atomic(ROOT / "results" / "rest_batch.json", json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
