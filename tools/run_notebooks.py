"""Run notebooks in place, with this environment's kernel, then clean them and export the package.

    python tools/run_notebooks.py                        all of nbs/ and book/, in order
    python tools/run_notebooks.py 12_backbone 14_losses     those, of either folder
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def execute(path: Path, timeout: int) -> None:
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    # python3: of this environment; the state of a slider would make the page load scripts from elsewhere
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=folder, store_widget_state=False).execute()
    nbformat.write(notebook, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", help="names in nbs/ or book/, with or without .ipynb; all when none is named")
    parser.add_argument("--timeout", type=int, default=600, help="longest time of one cell in seconds")
    arguments = parser.parse_args()
    present = {path.stem: path for folder in ("nbs", "book") for path in sorted((ROOT / folder).glob("*.ipynb"))}
    names = [Path(name).name.removesuffix(".ipynb") for name in arguments.notebooks] or list(present)
    for name in names:
        if name not in present:
            parser.error(f"no notebook {name} in nbs/ or book/")
    paths = [present[name] for name in names]
    subprocess.run([BIN / "nbdev_export"], cwd=ROOT, check=True)  # so that each notebook imports what the others now say
    failed = []
    for path in paths:
        start = time.perf_counter()
        try:
            execute(path, arguments.timeout)
        except CellExecutionError as error:
            failed.append(path.stem)
            print(error)
        print(f"{path.stem:30} {time.perf_counter() - start:6.1f} s{'   FAILED, left as it was' if path.stem in failed else ''}", flush=True)
        subprocess.run([BIN / "nbdev_clean", "--fname", path], cwd=ROOT, check=True)
    if failed:
        print("failed: " + ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
