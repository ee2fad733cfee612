"""Measure what chapter 35 shows: both loops as a pair, our switches one by one, and whether the fast ones cost accuracy. 45 minutes on two cores.

    python tools/measure_speed.py            into results/speed.json; kornia is compared too where it is installed (pip install kornia)
    python tools/measure_speed.py --device cuda --compile --image-size 224 112 --batch-size 256 64 --record results/speed_cuda.json

Nothing else should run meanwhile.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cucn_nb import bench, datasets, methods, metrics, protocols, training
from cucn_nb.augment import ERASE_AREA, ERASE_RATIO, NOISE_SD, augment
from cucn_nb.checkpoint import write_atomic
from cucn_nb.experiments import seed_interval
from cucn_nb.methods.base import IMAGENET_MEAN
from cucn_nb.training import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("pairs", "switches", "augmentation", "accuracy")
SWITCHES: list[tuple[str, dict[str, Any]]] = [  # each with those before it
    ("fused Adam, guard", {"precision": "float32", "channels_last": False}),
    ("channels last", {"precision": "float32"}),
    ("bfloat16", {"precision": "bf16"}),
    ("torch.compile", {"precision": "bf16", "compile": True}),
]


def switches(folder: Path, method: str, image_size: int, batch_size: int, device: str, repeat: int) -> list[dict[str, Any]]:
    """Seconds of a step with one switch after the other, all in turns."""
    bench.write_faces(folder / "faces", batch_size * 2)
    data = datasets.read(folder / "faces", image_size=image_size)

    def create() -> methods.Method:
        torch.manual_seed(0)
        return methods.create(method, counts=torch.full((7,), 100), image_size=image_size)

    public = bench.PublicLoop(create(), folder / "faces", image_size, batch_size, device, workers=0)
    images, labels = (part.to(device) for part in next(iter(public.loader)))
    steps: dict[str, Any] = {"public loop": lambda: public.step(images, labels)}
    for name, options in SWITCHES:
        config = TrainConfig(batch_size=batch_size, device=device, schedule="exponential", augmentation=training.Augmentation(0, 0, 0, 0), **options)
        engine = training._Engine(create(), data, config)
        engine.step.train()
        batch = next(engine.batches.epoch(0))
        steps[name] = lambda engine=engine, batch=batch: engine.train_on(batch)
    twice = {(name, turn): call for name, call in steps.items() for turn in ("first", "second")}  # the first finds nothing of its own in the caches
    seconds = bench.time_in_turns(twice, repeat, device)
    return [{"switch": name, "seconds": seconds[name, "second"], "median": statistics.median(seconds[name, "second"])} for name in steps]


def augmentation(image_size: int, batch_size: int, device: str, repeat: int = 15) -> dict[str, Any]:
    """Seconds to augment a batch of bytes by the policy of "raf-db", each image by its own luck: ours, torchvision v2, kornia if installed."""
    from torchvision.transforms import v2

    policy, ours = TrainConfig.preset("raf-db").augmentation, torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch_size, 3, image_size, image_size), dtype=torch.uint8, device=device)
    each = v2.Compose([v2.RandomHorizontalFlip(policy.flip), v2.ToDtype(torch.float32, scale=True),
                       v2.RandomApply([v2.GaussianNoise(sigma=NOISE_SD)], policy.noise),
                       v2.RandomErasing(policy.erase, ERASE_AREA, ERASE_RATIO, list(IMAGENET_MEAN))])
    calls: dict[str, Any] = {"cucn_nb": lambda: augment(images, policy, ours),
                             f"torchvision {version('torchvision')}, v2":
                             lambda: torch.stack([each(image) for image in images]).to(memory_format=torch.channels_last)}
    try:
        from kornia import augmentation as kornia

        together = torch.nn.Sequential(kornia.RandomHorizontalFlip(p=policy.flip), kornia.RandomGaussianNoise(std=NOISE_SD, p=policy.noise),
                                       kornia.RandomErasing(ERASE_AREA, ERASE_RATIO, value=0.45, p=policy.erase))
        calls[f"kornia {version('kornia')}"] = lambda: together(images.float() / 255).to(memory_format=torch.channels_last)
    except ModuleNotFoundError:
        print("kornia is not installed: it is left out of the augmentation's comparison")
    return {"image_size": image_size, "batch_size": batch_size, "policy": asdict(policy), "seconds": bench.time_in_turns(calls, repeat, device)}


def accuracy(device: str, seeds: int = 8) -> dict[str, Any]:
    """Mean recall on the embedded test faces at 48 pixels, slow and fast, paired by seed."""
    config = TrainConfig.preset("scratch", epochs=8, batch_size=64, device=device)
    slow, fast = replace(config, precision="float32", channels_last=False), replace(config, precision="bf16")
    whole, test = (datasets.read("faces", split, image_size=48) for split in ("train", "test"))
    found: dict[str, list[float]] = {"slow": [], "fast": []}
    for seed in range(seeds):
        train, valid = protocols.stratified_split(whole, 0.1, seed)
        for name, chosen in (("slow", slow), ("fast", fast)):
            torch.manual_seed(seed)
            method = methods.create("cross_entropy", counts=train.counts, image_size=48, weight_scheme="inverse")
            training.fit(method, train, valid, replace(chosen, seed=seed), verbose=False)
            found[name].append(metrics.evaluate(method, test).mean)
            print(seed, name, found[name][-1], flush=True)
    mean, half = seed_interval([b - a for a, b in zip(found["slow"], found["fast"], strict=True)])
    return {**found, "gain": mean, "half": half, "training": json.loads(json.dumps(asdict(config))), "images": len(test), "image_size": 48}


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--image-size", type=int, nargs="+", default=[224], help="the pairs are measured at each; the switches at the first")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32], help="the same")
    parser.add_argument("--compile", action="store_true", help="our side of the pairs is compiled")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; the rest of the record stays")
    parser.add_argument("--missing", action="store_true", help="measure only what the record does not hold yet")
    parser.add_argument("--record", type=Path, default=ROOT / "results" / "speed.json")
    arguments = parser.parse_args()
    device, sizes = arguments.device, list(itertools.product(arguments.image_size, arguments.batch_size))
    record = json.loads(arguments.record.read_text("utf-8")) if arguments.record.exists() else {}

    def keep() -> None:  # after each part, so that one who stops it loses nothing
        write_atomic(arguments.record, json.dumps(record, indent=1) + "\n")

    def lacks(part: str) -> bool:
        return part in arguments.parts and not (arguments.missing and part in record)

    with tempfile.TemporaryDirectory() as temporary:
        if "pairs" in arguments.parts and not arguments.missing:
            record["pairs"] = []
        held = {(pair["method"], pair["image_size"], pair["batch_size"]) for pair in record.get("pairs", [])}
        for (image_size, batch_size), method in itertools.product(sizes if "pairs" in arguments.parts else [], ("rul", "cucn")):
            if (method, image_size, batch_size) in held:
                continue
            folder = Path(temporary) / f"{method} {image_size} {batch_size}"
            pair = bench.compare(folder, method, image_size, batch_size, device, images=16 * batch_size, repeat=15,
                                 options={"compile": arguments.compile})
            print(bench.as_text(pair), flush=True)
            record.setdefault("pairs", []).append(pair)
            keep()
        for method in ("rul", "cucn") if "switches" in arguments.parts else ():
            if arguments.missing and method in record.get("switches", {}):
                continue
            rows = switches(Path(temporary) / f"{method} switches", method, *sizes[0], device, repeat=5)
            print(*((row["switch"], round(row["median"], 3)) for row in rows), flush=True)
            record["switches"] = {**record.get("switches", {}), method: rows}
            keep()
    if lacks("augmentation"):
        record["augmentation"] = [augmentation(*size, device) for size in (sizes[0], (64, 64))]
        for row in record["augmentation"]:
            print({name: round(1000 * statistics.median(values), 1) for name, values in row["seconds"].items()}, flush=True)
        keep()
    if lacks("accuracy"):
        record["accuracy"] = {**accuracy(device), "environment": training.environment(device)}
        keep()


if __name__ == "__main__":
    main()
