"""Render the shipped faces, once, from a fixed seed; print their counts and fingerprints.

Usage:
    python tools/build_faces.py

Writes cucn_nb/assets/faces_*.jpg, faces.npz and results/faces_fingerprint.json, in a few minutes on one core. The images
are stored as lossy JPEG mosaics; the fingerprints are those of the decoded pixels, which is what `cucn_nb.faces.load`
returns. The set is frozen: rendering it again is for checking how it was made.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import features

from cucn_nb.faces import ANNOTATORS, LAPSE, SHOWN, SPLITS, TEMPERATURE, FaceSet, draw_identity, draw_scene, load, make_set, render, save_mosaic

SEED = 2212  # arXiv 2212.07751
COUNTS = {"train": 5000, "test": 1400}
ROOT = Path(__file__).parents[1]
ASSETS, RECORD = ROOT / "cucn_nb" / "assets", ROOT / "results" / "faces_fingerprint.json"


def columns(faces: FaceSet) -> dict[str, np.ndarray]:
    """Give everything but the pixels, in small types, under the names that `load` expects."""
    kept: dict[str, np.ndarray] = {"labels": faces.labels.astype(np.uint8), "votes": faces.votes.astype(np.uint8)}
    kept |= {"identity": faces.identity.astype(np.int32), "blend": faces.blend} | faces.attributes
    return {f"{faces.split}-{name}": values for name, values in kept.items()}


def seconds_per_image(images: int = 105) -> float:
    """Measure the median processor time to render one face of 64 px, new people included."""
    times = []
    for person in range(images // 7):
        rng = np.random.default_rng([SEED, 9, person])
        start = time.process_time()
        identity = draw_identity(rng)
        for expression in SHOWN:
            render(identity, {expression: 1.0}, draw_scene(rng))
            times.append(time.process_time() - start)
            start = time.process_time()
    return statistics.median(times)


def main() -> None:
    """Render, write, read back, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    render_time, table = seconds_per_image(), dict[str, Any]()
    for split in SPLITS:
        faces = make_set(COUNTS[split], SEED, split)
        save_mosaic(faces, ASSETS / f"faces_{split}.jpg")
        table |= columns(faces)
    np.savez_compressed(ASSETS / "faces.npz", **table)
    record: dict = {"seed": SEED, "annotators": ANNOTATORS, "temperature": TEMPERATURE, "lapse": LAPSE, "splits": {}}
    load_times = []
    for _ in range(5):
        start = time.process_time()
        sets = [load(split) for split in SPLITS]
        load_times.append(time.process_time() - start)
    for faces in sets:
        counts = {e.label: int(n) for e, n in zip(SHOWN, np.bincount(faces.labels, minlength=7), strict=True)}
        record["splits"][faces.split] = {
            "fingerprint": faces.fingerprint(), "images": len(faces), "identities": len(np.unique(faces.identity)), "counts": counts,
            "labels_that_differ_from_truth": int((faces.labels != faces.truth).sum()),
            "fewer_than_6_of_10_agree": int((faces.votes.max(1) < 6).sum()),
            "bytes": (ASSETS / f"faces_{faces.split}.jpg").stat().st_size,
        }
    record |= {
        "render_cpu_seconds_64px_median": round(render_time, 4), "render_images_timed": 105,
        "load_cpu_seconds_both_splits_median": round(statistics.median(load_times), 3),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"), "cpu": platform.processor() or platform.machine(),
        "versions": {
            "python": platform.python_version(), "numpy": np.__version__, "pillow": PIL.__version__,
            "libjpeg_turbo": features.version("libjpeg_turbo"),
        },
    }
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
