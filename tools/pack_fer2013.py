"""Pack FER2013 and FERPlus's votes into one lossless file of about 48 MB, to carry them to a machine without a network; and unpack it there.

    python tools/pack_fer2013.py pack FOLDER FILE      FOLDER holds fer2013.csv and fer2013new.csv as released
    python tools/pack_fer2013.py unpack FILE FOLDER    writes both again, row for row

Only Training and PublicTest rows travel. Pixel-identical images are stored once. The images have no licence that could be confirmed: keep the
file out of the repository and pass it on to nobody.
"""

import csv
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, STRIP = 48, 500  # pixels; images a strip
USAGES = ("Training", "PublicTest")


def pack(folder: Path, file: Path) -> None:
    """Write the file."""
    with open(folder / "fer2013.csv", newline="", encoding="utf-8") as released:
        rows = [row for row in csv.DictReader(released) if row["Usage"] in USAGES]
    images = np.stack([np.array(row["pixels"].split(), np.uint8) for row in rows])
    unique, place = np.unique(images, axis=0, return_inverse=True)
    facts = io.BytesIO()
    np.savez_compressed(facts, place=place.astype(np.uint16).ravel(), emotion=np.array([int(row["emotion"]) for row in rows], np.uint8),
                        usage=np.array([USAGES.index(row["Usage"]) for row in rows], np.uint8))
    votes = (folder / "fer2013new.csv").read_bytes().splitlines(keepends=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("facts.npz", facts.getvalue())
        archive.writestr("fer2013new.csv", b"".join(votes[:len(rows) + 1]), zipfile.ZIP_DEFLATED)
        for first in range(0, len(unique), STRIP):
            strip = io.BytesIO()
            Image.fromarray(unique[first:first + STRIP].reshape(-1, SIDE)).save(strip, "PNG", optimize=True)
            archive.writestr(f"{first:05d}.png", strip.getvalue())
    print(f"{len(rows)} rows, {len(unique)} different images, {file.stat().st_size / 1e6:.1f} MB")


def unpack(file: Path, folder: Path) -> None:
    """Write both csv files again."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file) as archive:
        facts = np.load(io.BytesIO(archive.read("facts.npz")), allow_pickle=False)
        strips = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in sorted(archive.namelist()) if name.endswith(".png")]
        (folder / "fer2013new.csv").write_bytes(archive.read("fer2013new.csv"))
    images = np.concatenate(strips).reshape(-1, SIDE * SIDE)
    text = [" ".join(map(str, image.tolist())) for image in images]
    with open(folder / "fer2013.csv", "w", newline="", encoding="utf-8") as released:
        writer = csv.writer(released)
        writer.writerow(["emotion", "pixels", "Usage"])
        for place, emotion, usage in zip(facts["place"].tolist(), facts["emotion"].tolist(), facts["usage"].tolist(), strict=True):
            writer.writerow([emotion, text[place], USAGES[usage]])


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("pack", "unpack"):
        sys.exit(__doc__)
    {"pack": pack, "unpack": unpack}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
