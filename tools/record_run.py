"""Keep a judged run as a record: results/NAME.json (settings, versions, history, numbers) and results/NAME.csv (every image's answer).

    python tools/record_run.py RUN NAME        for example: runs/demo faces/cucn-seed0
    python tools/record_run.py RUN NAME --split valid        what `cucn evaluate RUN --split valid` has judged, for questions that need noisy labels

The record holds no path of the machine and no image; a row of the csv names an image by its source, for FER2013 the row of the official csv.
"""

import argparse
import json
import re
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results"


def judged(run: Path, name: str, split: str) -> str:
    """The ending of the files that `cucn evaluate` has written about this split of the data that the run learned from."""
    found = [path.stem.removeprefix("evaluation") for path in sorted(run.glob("evaluation*.json"))
             if (about := json.loads(path.read_text("utf-8")))["data"] == name and about["split"] == split]
    if len(found) != 1:
        raise SystemExit(f"{run}: {len(found)} evaluations of {name}/{split}, one is needed: run `cucn evaluate` once, or take the others away")
    return found[0]


def record(run: Path, ending: str) -> dict:
    """Collect what made a run and what came out of it."""
    names = ("config", "environment", f"evaluation{ending}")
    config, environment, evaluation = (json.loads((run / f"{name}.json").read_text("utf-8")) for name in names)
    config.pop("source", None)  # a path of this machine, like that of pretrained weights
    if config["method"]["weights"]:
        config["method"]["weights"] = Path(config["method"]["weights"]).name
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {**config, "environment": environment, "history": history, "evaluation": evaluation}


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", help="path under results/ without an ending")
    parser.add_argument("--split", choices=("test", "valid"), default="test")
    arguments = parser.parse_args()
    name = json.loads((arguments.run / "config.json").read_text("utf-8"))["data"]["train"]["name"]
    ending = judged(arguments.run, name, arguments.split)
    out = RESULTS / arguments.name
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record(arguments.run, ending), indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda row: re.sub(r"\s+", " ", row[0]), text)  # a list of numbers on one line
    out.with_suffix(".json").write_text(text + "\n", "utf-8")
    out.with_suffix(".csv").write_bytes((arguments.run / f"predictions{ending}.csv").read_bytes())
    print(f"wrote results/{arguments.name}.json and .csv")


if __name__ == "__main__":
    main()
