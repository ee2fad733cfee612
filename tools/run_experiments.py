"""Run the experiments of the book: every cell that has no record yet in results/experiments/.

    python tools/pretrain_trunk.py faces_trunk.safetensors      once: what the cells on the embedded faces start from
    python tools/run_experiments.py faces --trunk faces_trunk.safetensors      settings x label noise x seeds on the embedded faces
    python tools/run_experiments.py fer2013 --data FOLDER       FER2013 with FERPlus's votes beside it, some hours on two cores
    python tools/run_experiments.py ... --part 2/4              the second of four jobs
    python tools/run_experiments.py fer2013 --data FOLDER --seeds 5 --epochs 60      where a GPU is at hand; into results/experiments/fer2013-60

Stop it when you like: a finished cell is never run again, and a cell that was cut off goes on after its last epoch. Several processes may
run at once.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from cucn_nb.experiments import Grid, run
from cucn_nb.training import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
GRIDS = {
    "faces": Grid("faces", TrainConfig.preset("scratch", epochs=5, lr=1e-3, classifier_lr=1e-3), noise=(0.0, 0.2)),
    "fer2013": Grid("fer2013.csv", TrainConfig.preset("scratch", batch_size=64), settings=("cross_entropy", "rul", "cucn", "mek"), stem="small"),
}


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main() -> None:
    """Run a grid, or a part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--data", help="folder or csv of FER2013")
    parser.add_argument("--trunk", help="weights that every cell on the embedded faces starts from")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="run every N-th cell from the I-th on")
    parser.add_argument("--seeds", type=positive, help="repetitions")
    parser.add_argument("--epochs", type=positive, help="a longer or shorter schedule; its records go to a folder of their own")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "experiments", help="folder for unfinished runs")
    arguments = parser.parse_args()
    if (arguments.grid == "fer2013") != (arguments.data is not None) or (arguments.grid == "faces") != (arguments.trunk is not None):
        parser.error("fer2013 takes --data, the folder of the official csv; faces takes --trunk, what tools/pretrain_trunk.py has written")
    index, _, of = arguments.part.partition("/")
    if not (index.isdigit() and of.isdigit() and 1 <= int(index) <= int(of)):
        parser.error(f"--part {arguments.part}: give I/N, such as 2/4")
    grid, name = GRIDS[arguments.grid], arguments.grid
    grid = replace(grid, source=arguments.data) if arguments.data else replace(grid, weights=arguments.trunk)
    if arguments.seeds:
        grid = replace(grid, seeds=tuple(range(arguments.seeds)))
    if arguments.epochs:
        grid, name = replace(grid, config=replace(grid.config, epochs=arguments.epochs)), f"{name}-{arguments.epochs}"
    run(grid, ROOT / "results" / "experiments" / name, arguments.work / name, (int(index), int(of)), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
