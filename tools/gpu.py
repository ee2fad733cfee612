"""Everything that this project wants from a GPU, in order of value, in one command of at most nine minutes. tools/gpu.md says how to call it.

    python tools/gpu.py --out FOLDER [--fer2013 FILE] [--minutes 9] [--workers 16] [--device cuda]

1. cells and trials of the experiments, many processes on the one card, while the parts 2 and 3 run
2. methods: every method trains, resumes to the same end and judges, on the device; then the tests that need a GPU
3. notebooks: the code cells of six chapters, from top to bottom
4. speed, alone on the card: our loop against public code, eager and compiled, and our switches one by one

A part whose record is there is skipped, a cell of an experiment that has a record as well; a cell that the end cuts off is saved, and a second call
on the same machine goes on with it. The records go into results/, and a copy of those that are new into FOLDER/records.tar with a summary beside it.
Needs no network, and neither tyro, grad-cam, nbdev nor jupyter.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
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
SETTINGS = ("cross_entropy", "rul", "cucn", "rul-shuffled", "rul-half", "rul-none", "cross_entropy+w", "rul+w", "cucn-open", "rul-other", "mek")


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
                       "test_mean": report.mean, "largest_difference_of_answers_from_the_file":
                       float((report.probabilities - again.probabilities).abs().max())}
        print(name, json.dumps(found[name]), flush=True)
    return {"methods": found, "environment": training.environment(device)}


def part_tests(seconds: float) -> tuple[bool, str]:
    """Run the tests that are about a GPU; returns whether they passed, and the last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_resume.py", "-k", "gpu or cuda"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False, "took too long"
    print(done.stdout[-1500:], flush=True)
    last = (done.stdout.strip() or done.stderr.strip() or "said nothing").splitlines()[-1]
    return done.returncode == 0, last


def part_speed(device: str, seconds: float, small: bool) -> bool:
    """Measure both loops, as far as the record does not hold it yet; what was measured before the time is up stays."""
    sizes = ["--image-size", "32", "--batch-size", "8"] if small else ["--image-size", "224", "112", "--batch-size", "256"]
    record = GPU.parent / f"speed_{device}.json" if not small else GPU / "speed_dry.json"
    command = [sys.executable, "tools/measure_speed.py", "--device", device, *sizes, "--parts", "pairs", "switches", "--missing",
               "--record", str(record)]
    if device == "cuda":
        command.append("--compile")
    return subprocess.run(command, cwd=ROOT, timeout=seconds).returncode == 0


def queues(settings: list[str], fer2013: Path | None, workers: int, device: str, small: bool) -> list[list[list[str]]]:
    """List what each process does, one command after the other: the trials are dealt out, the cells are shared by their locks.

    Every third process begins with the second grid: cells of FER2013 are long, and would not end if they were begun late.
    """
    cells, trials = ["tools/run_experiments.py"], ["tools/run_trials.py", "--device", device]
    if small:
        grids = [[*cells, "faces", "--epochs", "1", "--seeds", "0", "--settings", "cross_entropy", "rul", "--device", device]]
        return [[*grids] for _ in range(workers)]
    grids = [[*cells, "faces", "--device", device, "--settings", *settings]]
    if fer2013:
        grids.append([*cells, "fer2013", "--data", str(fer2013), "--device", device])
    grids += [[*cells, "ladder", "--device", device, "--epochs", str(epochs)] for epochs in (15, 5, 60, 120)]
    first = [[*trials, "--part", f"{k}/3"] for k in (1, 2, 3)]
    if fer2013:
        first += [[*trials, "--data", str(fer2013), "--part", f"{k}/3"] for k in (1, 2, 3)]
    later = first[workers:]  # more trials than processes
    return [[*first[k:k + 1], *(later if k == 0 else []), *(grids if k % 3 else [*grids[1:2], *grids])] for k in range(workers)]


class Workers:
    """Processes that work off their queues; each stops by itself, or is told to and saves where it is."""

    def __init__(self, queues: list[list[list[str]]], until: float, log: Path) -> None:
        self.stopped, self.log, self.until = False, log.open("ab"), until
        self.exits: list[int] = []
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.threads = [threading.Thread(target=self._work, args=(number, queue)) for number, queue in enumerate(queues)]
        for thread in self.threads:
            thread.start()

    def _work(self, number: int, queue: list[list[str]]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for arguments in queue:
            if self.stopped:
                return
            if arguments[0].endswith("run_experiments.py"):
                arguments = [*arguments, "--until", f"{self.until:.0f}"]
            self.running[number] = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, stdout=self.log, stderr=self.log)
            self.exits.append(self.running[number].wait())

    def busy(self) -> bool:
        """Whether any is at work."""
        return any(thread.is_alive() for thread in self.threads)

    def stop(self, patience: float = 15.0) -> None:
        """End them after the step that each is at; what cannot be stopped is killed."""
        self.stopped = True
        for job in self.running.values():
            job.terminate()
        end = time.time() + patience
        for thread in self.threads:
            thread.join(max(0.1, end - time.time()))
        for job in self.running.values():
            job.kill()


def share_the_card() -> subprocess.Popen[bytes] | None:
    """Let kernels of several processes run side by side (NVIDIA's multi-process service), where that is there and works; else they take turns."""
    folder = Path("/tmp/mps")
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(folder), "CUDA_MPS_LOG_DIRECTORY": str(folder)}
    if (program := shutil.which("nvidia-cuda-mps-control", path=f"{os.environ['PATH']}:/usr/local/nvidia/bin:/usr/bin")) is None:
        print("no multi-process service", flush=True)
        return None
    daemon = subprocess.Popen([program, "-f"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    try:
        subprocess.run([sys.executable, "-c", "import torch; x = torch.ones(9, device='cuda'); assert float(x.sum()) == 9"], env=environment,
                       check=True, timeout=30)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"the multi-process service does not work here: {error}", flush=True)
        daemon.kill()
        return None
    os.environ.update(environment)
    print("multi-process service", flush=True)
    return daemon


def run_cells_of(notebook: str) -> None:
    """Run the code cells of a chapter in one namespace, as a reader would; the process fails where a cell does."""
    cells = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text("utf-8"))["cells"]
    os.chdir(ROOT / "nbs")
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "eval: false" not in source:
            exec(compile(source, f"{notebook} cell {number}", "exec"), space)


def bring_home(out: Path, start: float, summary: dict[str, Any]) -> None:
    """Copy the records that are new into FOLDER/records.tar, with a summary beside it."""
    new = [found for found in (ROOT / "results").rglob("*") if found.is_file() and found.stat().st_mtime >= start]
    with tarfile.open(out / "records.tar", "w") as archive:
        for found in new:
            archive.add(found, found.relative_to(ROOT))
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    print(f"{len(new)} new files, {time.time() - start:.0f} s", flush=True)


def main() -> int:
    """Run the parts that have no record yet, while there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the new records and the summary")
    parser.add_argument("--fer2013", type=Path, help="what tools/pack_fer2013.py has written")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--speed-minutes", type=float, default=3.2, help="of these, at the end, for the speed records")
    parser.add_argument("--then", type=float, default=0.0, metavar="MINUTES", help="that a second call will add to the cells")
    parser.add_argument("--workers", type=int, default=16, help="processes that run cells")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="rows of the grid on embedded faces, in this order")
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

    folder = None
    if arguments.fer2013:
        import pack_fer2013

        folder = Path(os.environ.get("TMPDIR", "/tmp")) / "fer2013_unpacked"
        if not (folder / "fer2013.csv").exists():
            pack_fer2013.unpack(arguments.fer2013, folder)
    arguments.out.mkdir(parents=True, exist_ok=True)
    daemon = share_the_card() if arguments.device == "cuda" else None
    cells_end = end - 60 * arguments.speed_minutes - 20
    jobs = queues(arguments.settings, folder, arguments.workers, arguments.device, arguments.small)
    workers = Workers(jobs, cells_end + 60 * arguments.then, arguments.out / "cells.log")
    try:
        path = GPU / f"methods{suffix}.json"
        if path.exists() and "answers_from_the_file" in path.read_text("utf-8"):
            note("methods", "has a record")
        else:
            try:
                path.write_text(json.dumps(part_methods(arguments.device), indent=1) + "\n", "utf-8")
                note("methods", "done")
            except Exception as error:  # the parts after it have their own worth
                note("methods", f"FAILED: {type(error).__name__}: {error}")
        path = GPU / f"tests{suffix}.json"
        if path.exists():
            note("tests", "has a record")
        else:
            passed, last = part_tests(max(60.0, cells_end - time.time()))
            if passed and (arguments.device == "cuda" or arguments.small):  # elsewhere they are skipped
                path.write_text(json.dumps({"passed": last}) + "\n", "utf-8")
            note("tests", "done" if passed else f"FAILED: {last}")
        for name in NOTEBOOKS:
            path = GPU / f"notebook_{name}{suffix}.json"
            if path.exists() or time.time() > cells_end:
                note(name, "has a record" if path.exists() else "no time left")
                continue
            began = time.time()
            try:
                done = subprocess.run([sys.executable, __file__, "--notebook", name], cwd=ROOT, capture_output=True, text=True,
                                      timeout=max(10.0, cells_end - time.time()))
                if done.returncode == 0:
                    path.write_text(json.dumps({"seconds": round(time.time() - began, 1), "device": arguments.device}) + "\n", "utf-8")
                note(name, "done" if done.returncode == 0 else f"FAILED: {done.stderr.strip().splitlines()[-1:]}")
            except subprocess.TimeoutExpired:
                note(name, "took too long and was stopped")
        while workers.busy() and time.time() < cells_end:
            time.sleep(1)
        workers.stop()
        said = (arguments.out / "cells.log").read_text("utf-8", "replace").splitlines()
        print("\n".join(line for line in said if line.startswith("{'source'") or "Error" in line), flush=True)
        note("cells", f"{sum(line.endswith(': done') for line in said)} done; {len(workers.exits)} commands, exits {sorted(set(workers.exits))}")
        if daemon:
            daemon.terminate()
        if arguments.speed_minutes:
            for name in [name for name in os.environ if name.startswith("CUDA_MPS_")]:
                del os.environ[name]
            try:
                note("speed", "complete" if part_speed(arguments.device, left() - 5, arguments.small) else "FAILED")
            except subprocess.TimeoutExpired:
                note("speed", "stopped: what was measured is kept")
    finally:  # what is measured comes home whatever happens
        workers.stop()
        bring_home(arguments.out, start, summary)
    return int(any("FAILED" in str(what) for what in summary.values()))


if __name__ == "__main__":
    sys.exit(main())
