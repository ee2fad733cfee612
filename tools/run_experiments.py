"""Run the experiments of the book: every cell that has no record yet in results/experiments/.

    python tools/run_experiments.py faces      settings x label noise x seeds on the embedded faces, from random weights
    python tools/run_experiments.py fer2013 --data FOLDER      FER2013 with FERPlus's votes beside it
    python tools/run_experiments.py field      every other method of the package, one seed, labels as annotated
    python tools/run_experiments.py ladder --epochs 15      three settings at another budget; into results/experiments/ladder-15
    python tools/run_experiments.py ... --part 2/4              the second of four jobs
    python tools/run_experiments.py faces --settings cucn rul --seeds 3 4 --epochs 60      some rows, other seeds, a longer schedule; into faces-60

Stop it when you like: a finished cell is never run again, and a cell that was cut off goes on after its last saved step. Several processes may
run at once.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from cucn_nb.experiments import SETTINGS, Grid, run
from cucn_nb.training import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
FACES = ("cross_entropy", "cross_entropy+w", "rul", "rul+w", "cucn", "cucn-open", "mek", "rul-none", "rul-half", "rul-shuffled", "rul-other")
FIELD = ("eac", "scn", "dacl", "ad_corre", "dmue", "vtff", "t21dst", "wsfer",
         "logit_adjusted", "ldam", "focal", "label_smoothing", "generalised", "mixup")
SCHEDULE = TrainConfig.preset("scratch", precision="float32")  # float32 everywhere
GRIDS = {
    "faces": Grid("faces", SCHEDULE, settings=FACES, noise=(0.0, 0.2), stem="small", width=16),
    "field": Grid("faces", SCHEDULE, settings=FIELD, seeds=(0,), stem="small", width=16),
    "ladder": Grid("faces", SCHEDULE, settings=("cross_entropy", "rul", "cucn"), seeds=(0, 1), stem="small", width=16),
    "fer2013": Grid("fer2013.csv", SCHEDULE, settings=("cross_entropy", "cross_entropy+w", "rul", "rul+w", "cucn", "mek"),
                    seeds=(0, 1), stem="small", width=16),
}


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def seed(text: str) -> int:
    """Read a whole number of at least 0."""
    if (number := int(text)) < 0:
        raise ValueError
    return number


def main() -> None:
    """Run a grid, or a part of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--data", help="folder or csv of FER2013")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="run every N-th cell from the I-th on")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, help="only these rows")
    parser.add_argument("--seeds", nargs="+", type=seed, help="only these repetitions, or further ones")
    parser.add_argument("--epochs", type=positive, help="a longer or shorter schedule; its records go to a folder of their own")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--until", type=float, default=float("inf"), metavar="TIME", help="seconds since 1970: begin no cell that would end later")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "experiments", help="folder for unfinished runs")
    arguments = parser.parse_args()
    if (arguments.grid == "fer2013") != (arguments.data is not None):
        parser.error("fer2013 takes --data, the folder of the official csv; the other grids take none")
    index, _, of = arguments.part.partition("/")
    if not (index.isdigit() and of.isdigit() and 1 <= int(index) <= int(of)):
        parser.error(f"--part {arguments.part}: give I/N, such as 2/4")
    grid, name = GRIDS[arguments.grid], arguments.grid
    grid = replace(grid, source=arguments.data or grid.source, settings=tuple(arguments.settings or grid.settings),
                   seeds=tuple(arguments.seeds or grid.seeds),
                   config=replace(grid.config, device=arguments.device, epochs=arguments.epochs or grid.config.epochs))
    if arguments.epochs:
        name = f"{name}-{arguments.epochs}"
    run(grid, ROOT / "results" / "experiments" / name, arguments.work / name, (int(index), int(of)), lambda line: print(line, flush=True),
        arguments.until)


if __name__ == "__main__":
    main()
