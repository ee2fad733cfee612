"""Measure the cache on a set of AffectNet's size: the embedded faces, written again and again under new names.

    python tools/measure_cache.py FOLDER [--files 283901]      writes some 2 GB of small files and a cache of 3.5 GB there; results/cache.json

Everything is measured in one run, so that the pair of loaders saw the same machine.
"""

import argparse
import io
import json
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cucn_nb import datasets
from cucn_nb.batches import Batches
from cucn_nb.cache import cached
from cucn_nb.checkpoint import write_atomic
from cucn_nb.survey import PUBLISHED
from cucn_nb.training import environment

ROOT = Path(__file__).resolve().parent.parent
SHARES = PUBLISHED["affectnet csv"]["train"][:7]  # 283,901 images


def write(folder: Path, files: int) -> None:
    """Write the training faces as JPEG files in class folders, in AffectNet's proportions, and 500 test faces a class."""
    for split, counts in (("train", [round(n * files / sum(SHARES)) for n in SHARES]), ("test", [500] * 7)):
        data = datasets.read("faces", split)
        for label, name in enumerate(data.classes):
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            contents = []
            for image in data.images[data.labels == label]:
                buffer = io.BytesIO()
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=90)
                contents.append(buffer.getvalue())
            for k in range(counts[label]):
                (target / f"{k:06}.jpg").write_bytes(contents[k % len(contents)])


class Decoding(Dataset[tuple[torch.Tensor, int]]):
    """What most training scripts do: open and decode a file each time it is asked for."""

    def __init__(self, data: datasets.FaceDataset, folder: Path) -> None:
        self.paths, self.labels = [str(folder / source) for source in data.sources], data.labels.tolist()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image and its label."""
        with Image.open(self.paths[index]) as image:
            pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.view(64, 64, 3).permute(2, 0, 1), self.labels[index]


def memory() -> int:
    """Bytes of memory of this process and its children that are no pages of files; what they share counts once."""
    total, parents = 0, {Path("/proc/self").resolve().name}
    for process in sorted((p for p in Path("/proc").iterdir() if p.name.isdigit()), key=lambda p: int(p.name)):
        try:
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            if process.name in parents or status["PPid"].strip() in parents:
                parents.add(process.name)
                held = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
                total += int(held["Pss_Anon"].split()[0]) * 1024
        except (OSError, KeyError):  # it has ended
            continue
    return total


class Watch(threading.Thread):
    """Notes the largest memory while something runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self) -> None:
        """Look every half second."""
        while not self.done.wait(0.5):
            self.peak = max(self.peak, memory())


def timed(batches: Iterator[Any], images: int) -> float:
    """Images a second of one pass; every batch is touched."""
    start, seen, total = time.perf_counter(), 0, 0
    for pixels, labels in batches:
        seen += len(labels)
        total += int(pixels[:, 0, 0, 0].sum())
    assert seen == images and total > 0
    return images / (time.perf_counter() - start)


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=sum(SHARES))
    arguments = parser.parse_args()
    source, caches = arguments.folder / "faces", arguments.folder / "caches"
    if not source.exists():
        write(source, arguments.files)
    before, watch, start = memory(), Watch(), time.perf_counter()
    watch.start()
    train = cached(source, caches, 64)["train"]
    seconds = time.perf_counter() - start
    watch.done.set()
    opening = []
    for _ in range(5):
        start = time.perf_counter()
        train = cached(source, caches, 64)["train"]
        opening.append(time.perf_counter() - start)
    cores = joblib.cpu_count()
    loader = DataLoader(Decoding(train, source), batch_size=256, shuffle=True, num_workers=cores)
    rates = {"decoding every epoch": [], "cache": []}
    for epoch in range(2):
        rates["decoding every epoch"].append(timed(iter(loader), len(train)))
        rates["cache"].append(timed(((batch.images, batch.labels) for batch in Batches(train, 256, seed=0).epoch(epoch)), len(train)))
    ratios = [fast / slow for fast, slow in zip(rates["cache"], rates["decoding every epoch"], strict=True)]
    files = len(train) + 3500
    record = {"files": files, "training images": len(train), "side": 64, "cores": cores, "build seconds": seconds,
              "build rate a core": files / seconds / cores,
              "largest anonymous memory while building, MB, all processes": watch.peak / 2**20, "before, MB": before / 2**20,
              "opening seconds": {"median": statistics.median(opening), "all": opening}, "images a second": rates, "ratio": ratios,
              "environment": environment("cpu")}
    print(json.dumps(record, indent=1))
    write_atomic(ROOT / "results" / "cache.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
