"""Teach the light ResNet-18 what rendered faces look like, without a word about expressions: light, age, sex, hair, tilt, ... are regressed.

    python tools/pretrain_trunk.py results/networks/faces_trunk.safetensors      four minutes on two cores

The published methods start from a network that has learned to recognise people on millions of photographs. This is the laboratory's stand-in, and
what `make demo` starts from: from random weights a network that mixes sits at chance for the first third of a short training. It sees the training
images alone, all of them once an epoch. What it was made with is written beside it, FILE.json.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cucn_nb import datasets
from cucn_nb.augment import Augmentation, augment
from cucn_nb.backbone import resnet
from cucn_nb.batches import Batches, random_stream
from cucn_nb.training import environment

EPOCHS, BATCH, RATE, SEED = 12, 32, 2e-3, 0
NUMBERS = ("age", "sex", "tone", "grey", "weight", "beard", "makeup", "yaw", "pitch", "roll", "noise", "exposure")
WORDS = ("hair", "style", "eyes")


def targets(data: datasets.FaceDataset) -> Tensor:
    """What is known about each face, float32 `[N, K]`, each column of mean 0 and standard deviation 1."""
    assert data.attributes is not None
    columns = [np.asarray(data.attributes[name], float) for name in NUMBERS]
    columns += [np.asarray(data.attributes[name]) == word for name in WORDS for word in sorted(set(data.attributes[name].tolist()))]
    table = torch.tensor(np.stack(columns, 1), dtype=torch.float32)
    table = table[:, table.std(0) > 0]
    return (table - table.mean(0)) / table.std(0)


def main() -> None:
    """Train the trunk and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="weights to write, torchvision's names")
    file, start = parser.parse_args().file, time.perf_counter()
    data = datasets.read("faces", "train")
    wanted = targets(data)
    torch.manual_seed(SEED)
    trunk, head = resnet(18, stem="small", width=16), nn.Linear(128, wanted.shape[1])
    trunk.to(memory_format=torch.channels_last)
    batches = Batches(data, BATCH, SEED, torch.device("cpu"))
    optimiser = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=RATE, weight_decay=1e-4, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, EPOCHS * batches.steps)
    bf16 = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    unexplained = []
    for epoch in range(EPOCHS):
        losses = []
        for batch in batches.epoch(epoch):
            stream = random_stream(SEED, "augment", epoch, batch.step)
            images = augment(batch.images, Augmentation(shift=0.08), stream)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                described = head(trunk((images - 0.45) / 0.225).mean((2, 3)))
            loss = (described.float() - wanted[batch.position]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            scheduler.step()
            losses.append(loss.detach())
        unexplained.append(round(torch.stack(losses).mean().item(), 4))
        print(f"epoch {epoch + 1}/{EPOCHS}: unexplained variance {unexplained[-1]:.3f}", flush=True)
    save_file({name: value.contiguous() for name, value in trunk.state_dict().items()}, file)
    record = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "epochs": EPOCHS, "batch_size": BATCH, "lr": RATE, "seed": SEED,
              "targets": [*NUMBERS, *WORDS], "data": {"name": data.name, "count": len(data), "fingerprint": data.fingerprint()},
              "unexplained_variance": unexplained, "precision": "bf16" if bf16 else "no", "seconds": round(time.perf_counter() - start),
              "environment": environment("cpu")}
    file.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"wrote {file} and {file.with_suffix('.json').name}")


if __name__ == "__main__":
    main()
