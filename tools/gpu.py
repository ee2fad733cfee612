"""Everything that this project wants from a GPU, in order of value, in one command of at most nine minutes. tools/gpu.md says how to call it.

    python tools/gpu.py --out FOLDER [--fer2013 FILE] [--minutes 9] [--workers 4] [--device cuda]

1. methods: every method trains, resumes to the same end and judges, on the device; then the tests that need a GPU
2. speed: our loop against public code, eager and compiled, and our switches one by one
3. cells: FER2013 (FILE is what tools/pack_fer2013.py has written) and embedded faces, several processes on the one card
4. notebooks: the code cells of six chapters, from top to bottom

A part whose record is there is skipped, a cell of an experiment that has a record as well; nothing is begun that would not end in time. The
records go into results/, and a copy of those that are new into FOLDER/records.tar with a summary beside it. Needs no network, and neither tyro,
grad-cam, nbdev nor jupyter.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
os.environ["MPLBACKEND"] = "Agg"
GPU = ROOT / "results" / "gpu"
NOTEBOOKS = ("11_cbam", "13_uncertainty", "20_methods", "22_rul", "31_batches", "34_training")


def part_methods(device: str) -> dict[str, Any]:
    """Train, cut, resume and judge each method; the resumed network is held against one that was never cut."""
    import tempfile

    import torch

    from cucn_nb import datasets, methods, metrics, protocols, training

    whole, test = (datasets.read("faces", split, image_size=48) for split in ("train", "test"))
    few = whole.subset(torch.arange(0, len(whole), 8))
    train, valid = protocols.stratified_split(few, 0.2, 0)
    config = training.TrainConfig.preset("raf-db", epochs=2, image_size=None, device=device, lr=1e-3, classifier_lr=1e-3)
    found = {}
    for name in methods.names():
        def make(name: str = name) -> methods.Method:
            torch.manual_seed(0)
            return methods.create(name, counts=train.counts, image_size=48, stem="small", width=16)

        with tempfile.TemporaryDirectory() as folder:
            straight = training.fit(make(), train, valid, config, verbose=False)
            training.fit(make(), train, valid, replace(config, epochs=1), Path(folder) / "run", verbose=False)
            resumed = training.fit(make(), train, valid, config, Path(folder) / "run", resume=True, verbose=False)
            loaded = training.load_run(Path(folder) / "run")
        one, two = straight.method.state_dict(), resumed.method.state_dict()
        apart = max(float((one[key].double() - two[key].double()).abs().max()) for key in one)
        report, again = metrics.evaluate(resumed.method, test), metrics.evaluate(loaded.method.to(resumed.method.mean.device), test)
        found[name] = {"device": str(resumed.method.mean.device), "precision": resumed.record["precision"],
                       "losses": [entry["loss"] for entry in resumed.history], "largest_difference_after_resume": apart,
                       "test_mean": report.mean, "same_answers_from_the_file": bool(torch.equal(report.probabilities, again.probabilities))}
        print(name, json.dumps(found[name]), flush=True)
    return {"methods": found, "environment": training.environment(device)}


def part_tests(seconds: float) -> dict[str, Any]:
    """Run the tests that only a GPU can run."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_resume.py", "-k", "gpu or cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    print(done.stdout[-1500:], flush=True)
    return {"exit": done.returncode, "said": done.stdout.strip().splitlines()[-1:]}


def part_speed(device: str, seconds: float, small: bool) -> bool:
    """Measure both loops, as far as the record does not hold it yet; what was measured before the time is up stays."""
    sizes = ["--image-size", "32", "--batch-size", "8"] if small else ["--image-size", "224", "112", "--batch-size", "256", "64"]
    record = GPU.parent / f"speed_{device}.json" if not small else GPU / "speed_dry.json"
    command = [sys.executable, "tools/measure_speed.py", "--device", device, *sizes, "--parts", "pairs", "switches", "--missing",
               "--record", str(record)]
    if device == "cuda":
        command.append("--compile")
    return subprocess.run(command, cwd=ROOT, timeout=seconds).returncode == 0


def start_cells(fer2013: Path | None, device: str, seconds: float, workers: int, small: bool) -> list[subprocess.Popen[bytes]]:
    """Begin the processes that run cells; each stops by itself."""
    jobs = []
    length = ["--epochs", "1", "--seeds", "1"] if small else ["--epochs", "60"]
    for index in range(1, workers + 1):
        grids = [["faces"], *([["fer2013", "--data", str(fer2013)]] if fer2013 else [])]
        if index % 2 == 0:
            grids.reverse()  # half of the processes begin with the one, half with the other
        lines = [f"{sys.executable} tools/run_experiments.py {' '.join(grid)} {' '.join(length)} --device {device} "
                 f"--until {time.time() + seconds:.0f}" for grid in grids]  # they share the cells by their locks
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        jobs.append(subprocess.Popen(["bash", "-c", "; ".join(lines)], cwd=ROOT, env=environment))
    return jobs


def run_cells_of(notebook: str) -> None:
    """Run the code cells of a chapter in one namespace, as a reader would; the process fails where a cell does."""
    cells = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text("utf-8"))["cells"]
    os.chdir(ROOT / "nbs")
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "eval: false" not in source:
            exec(compile(source, f"{notebook} cell {number}", "exec"), space)


def main() -> int:
    """Run the parts that have no record yet, while there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the new records and the summary")
    parser.add_argument("--fer2013", type=Path, help="what tools/pack_fer2013.py has written")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--workers", type=int, default=4, help="processes that run cells")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a rehearsal: the same parts with tiny sizes, records in results/gpu alone")
    parser.add_argument("--notebook", choices=NOTEBOOKS, help="run the code cells of this chapter and nothing else")
    arguments = parser.parse_args()
    if arguments.notebook:
        run_cells_of(arguments.notebook)
        return 0
    if arguments.out is None:
        parser.error("--out is missing")
    start, end = time.time(), time.time() + 60 * arguments.minutes
    GPU.mkdir(parents=True, exist_ok=True)
    suffix = "_dry" if arguments.small else ""
    summary: dict[str, Any] = {}

    def left() -> float:
        return end - time.time()

    def note(name: str, what: Any) -> None:
        summary[name] = what
        print(f"== {name}: {what} ({time.time() - start:.0f} s)", flush=True)

    path = GPU / f"methods{suffix}.json"
    if path.exists():
        note("methods", "has a record")
    else:
        record = part_methods(arguments.device)
        record["tests"] = part_tests(max(30.0, left()))
        path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        note("methods", "done")
    try:
        note("speed", "complete" if part_speed(arguments.device, 0.45 * left(), arguments.small) else "FAILED")
    except subprocess.TimeoutExpired:
        note("speed", "stopped: what was measured is kept")
    folder = None
    if arguments.fer2013:
        import pack_fer2013

        folder = Path(os.environ.get("TMPDIR", "/tmp")) / "fer2013_unpacked"
        if not (folder / "fer2013.csv").exists():
            pack_fer2013.unpack(arguments.fer2013, folder)
    jobs = start_cells(folder, arguments.device, max(0.0, left() - 75), arguments.workers, arguments.small)
    for job in jobs:
        try:
            job.wait(max(1.0, left() - 60))
        except subprocess.TimeoutExpired:
            job.terminate()  # the loop saves and ends; without its folder the cell begins anew another time
    note("cells", [job.wait() for job in jobs])
    for name in NOTEBOOKS:
        path = GPU / f"notebook_{name}{suffix}.json"
        if path.exists() or left() < 20:
            note(name, "has a record" if path.exists() else "no time left")
            continue
        began = time.time()
        try:
            done = subprocess.run([sys.executable, __file__, "--notebook", name], cwd=ROOT, capture_output=True, text=True, timeout=left())
            path.write_text(json.dumps({"exit": done.returncode, "seconds": round(time.time() - began, 1), "device": arguments.device,
                                        "end": done.stderr.strip().splitlines()[-1:] if done.returncode else []}, indent=1) + "\n", "utf-8")
            note(name, "done" if done.returncode == 0 else "FAILED: " + done.stderr.strip().splitlines()[-1])
        except subprocess.TimeoutExpired:
            note(name, "took too long and was stopped")
    arguments.out.mkdir(parents=True, exist_ok=True)
    new = [found for found in (ROOT / "results").rglob("*") if found.is_file() and found.stat().st_mtime >= start]
    with tarfile.open(arguments.out / "records.tar", "w") as archive:
        for found in new:
            archive.add(found, found.relative_to(ROOT))
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    print(f"{len(new)} new files, {time.time() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
