"""Teach a ResNet-18 what rendered faces look like, without a word about expressions: pose, light, age, sex, hair, ... are regressed.

    python tools/pretrain_trunk.py FILE.safetensors

The published methods start from a network that has learned to recognise people on millions of photographs. This is the laboratory's
stand-in: the trunk that the experiments on the embedded faces start from. It sees the training images alone, all of them once an epoch;
about six minutes on two cores.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cucn_nb import datasets
from cucn_nb.augment import Augmentation, augment
from cucn_nb.backbone import resnet
from cucn_nb.batches import Batches, random_stream

EPOCHS, BATCH, RATE, SEED = 16, 64, 2e-3, 0
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
    file = parser.parse_args().file
    data = datasets.read("faces", "train")
    wanted = targets(data)
    torch.manual_seed(SEED)
    trunk, head = resnet(18), nn.Linear(512, wanted.shape[1])
    trunk.to(memory_format=torch.channels_last)
    batches = Batches(data, BATCH, SEED, torch.device("cpu"))
    optimiser = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=RATE, weight_decay=1e-4, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, EPOCHS * batches.steps)
    bf16 = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    for epoch in range(EPOCHS):
        losses = []
        for batch in batches.epoch(epoch):
            stream = random_stream(SEED, "augment", epoch, batch.step)
            images = augment(batch.images, Augmentation(shift=0.08), stream)  # no mirror: it would turn yaw round
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                described = head(trunk((images - 0.45) / 0.225).mean((2, 3)))
            loss = (described.float() - wanted[batch.position]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            scheduler.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1}/{EPOCHS}: unexplained variance {torch.stack(losses).mean():.3f}", flush=True)
    save_file({name: value.contiguous() for name, value in trunk.state_dict().items()}, file)
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
