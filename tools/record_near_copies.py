"""Count FER2013's test images that have a near-copy among its training images, and write the record that the book reads.

    python tools/record_near_copies.py FOLDER      the folder with fer2013.csv and fer2013new.csv; writes results/fer2013_near_copies.json

No image is kept. That 48 pairs were looked at, and all showed one photograph, was seen by eye and stands here as a fact.
"""

import argparse
import json
from pathlib import Path

from cucn_nb.checkpoint import write_atomic
from cucn_nb.datasets import read
from cucn_nb.survey import near_copies, thumbnails

ROOT = Path(__file__).resolve().parent.parent
LEAST = (0.95, 0.96, 0.97, 0.98, 0.99)


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    folder = parser.parse_args().folder
    train, test = read(folder), read(folder, "test")
    scores = [score for _, _, score in near_copies(thumbnails(test.images), thumbnails(train.images), min(LEAST))]
    counts = {str(least): sum(score >= least for score in scores) for least in LEAST}
    record = {"test images": len(test), "training images": len(train), "fingerprints": {"train": train.fingerprint(), "test": test.fingerprint()},
              "left out before": list(train.notes), "test images with a near-copy in train": counts, "pairs looked at": 48,
              "pairs of one photograph": 48, "how": "twelve pairs each from 0.95-0.96, 0.96-0.97, 0.97-0.975 and 0.975-0.98, the first in order"}
    write_atomic(ROOT / "results" / "fer2013_near_copies.json", json.dumps(record, indent=1) + "\n")
    print(counts)


if __name__ == "__main__":
    main()
