"""Train by one command in one process and in two, over three seeds, and measure how far the answers are apart. 20 minutes on two cores.

    python tools/measure_processes.py            into results/processes.json

What two processes do not share is batch statistics, pairs, dropout and augmentation, so they train another network; the question is whether it is a
worse one. Nothing else should run meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from cucn_nb import datasets, metrics, training
from cucn_nb.checkpoint import write_atomic
from cucn_nb.experiments import seed_interval

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent  # of this environment
TRAIN = [BIN / "cucn", *"train --method cucn --data faces --image-size 48 --device cpu".split()]


def main() -> None:
    """Train, judge on the embedded test faces, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--record", type=Path, default=ROOT / "results" / "processes.json")
    arguments = parser.parse_args()
    test = datasets.read("faces", "test", image_size=48)
    found: dict[str, list[float]] = {"one": [], "two": []}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(arguments.seeds):
            for processes, name in enumerate(found, start=1):
                out = Path(temporary) / f"{name}-{seed}"
                launcher = [BIN / "torchrun", "--standalone", "--nproc_per_node", str(processes), "--no-python"] if processes > 1 else []
                subprocess.run([*launcher, *TRAIN, "--seed", str(seed), "--epochs", str(arguments.epochs), "--out", out], check=True)
                run = training.load_run(out)
                assert run.complete and run.record["processes"] == processes
                found[name].append(metrics.evaluate(run.method, test).mean)
                print(seed, name, found[name][-1], flush=True)
    mean, half = seed_interval([b - a for a, b in zip(found["one"], found["two"], strict=True)])
    record = {**found, "gain": mean, "half": half, "images": len(test), "method": run.record["method"], "training": run.record["training"],
              "precision": run.record["precision"], "environment": training.environment()}
    write_atomic(arguments.record, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
