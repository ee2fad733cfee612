"""Faces written to disk in each layout that cucn_nb.layouts lists, for tests that go the whole way round.

Each writer takes an empty folder and {split: (faces uint8 [N, H, W, 3], labels in enum order [N])}. It gives {split: the path of each face}, in the
given order, relative to the root of the listing. Files are lossless PNG but where the layout's own names end in .jpg; those are JPEG, quality 95.
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from cucn_nb.expressions import AFFECTNET, FERPLUS, RAF_DB, Expression

AFFECTNET_ID = {expression: number for number, expression in AFFECTNET.items()}
RAF_DB_ID = {expression: number for number, expression in RAF_DB.items()}
FERPLUS_COLUMN = {expression: column for column, expression in FERPLUS.items()}
FERPLUS_HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
AFFECTNET_HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
SFEW_WORDS = {0: "Surprise", 1: "Fear", 2: "Disgust", 3: "Happy", 4: "Sad", 5: "Angry", 6: "Neutral"}
BORDER = (5, 3)  # pixels to the left and above of a face within AffectNet's photographs
MARGIN = (11, 8)  # by how much these photographs are wider and higher


def save(path, face):
    """One face as the name says: .png or .jpg."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(face).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def save_all(root, splits, name):
    """Every face under name(split, i, label)."""
    paths = {split: [name(split, i, int(label)) for i, label in enumerate(labels)] for split, (_, labels) in splits.items()}
    for split, (faces, _) in splits.items():
        for face, path in zip(faces, paths[split], strict=True):
            save(Path(root, path), face)
    return paths


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_class_folders(root, splits):
    return save_all(root, splits, lambda split, i, label: f"{split}/{Expression(label).label}/{i:05}.png")


def write_raf_db(root, splits):
    digits = {"train": 5, "test": 4}
    names = {split: [f"{split}_{i:0{digits[split]}}" for i in range(1, len(labels) + 1)] for split, (_, labels) in splits.items()}
    lines = [f"{name}.jpg {RAF_DB_ID[label]}" for split, (_, labels) in splits.items()
             for name, label in zip(names[split], labels.tolist(), strict=True)]
    write_lines(root / "EmoLabel" / "list_patition_label.txt", lines)
    return save_all(root, splits, lambda split, i, label: f"Image/aligned/{names[split][i]}_aligned.jpg")


def write_raf_db_folders(root, splits):
    paths = save_all(root, splits, lambda split, i, label: f"DATASET/{split}/{RAF_DB_ID[label]}/{split}_{i:05}_aligned.jpg")
    for split, own in paths.items():
        write_lines(root / f"{split}_labels.csv", ["image,label", *(f"{path.split('/')[3]},{path.split('/')[2]}" for path in own)])
    return paths


def write_affectnet_csv(root, splits, extra=()):
    """`extra`: further lines of training.csv."""
    (x, y), (wider, higher) = BORDER, MARGIN
    paths = {}
    for split, (faces, labels) in splits.items():
        height, width = faces.shape[1:3]
        names = [f"{split}{i % 3}/{i:032x}.png" for i in range(len(faces))]
        lines = [f"{name},{x},{y},{width},{height},1.5;2.5,{AFFECTNET_ID[label]},0.1,-0.2"
                 for name, label in zip(names, labels.tolist(), strict=True)]
        document = root / "Manually_Annotated_file_lists" / ("training.csv" if split == "train" else "validation.csv")
        write_lines(document, [AFFECTNET_HEADER, *lines, *(extra if split == "train" else ())])
        paths[split] = [f"Manually_Annotated_Images/{name}" for name in names]
        for path, face in zip(paths[split], faces, strict=True):
            photo = np.full((height + higher, width + wider, 3), 200, dtype=np.uint8)
            photo[y:y + height, x:x + width] = face
            save(root / path, photo)
    return paths


def write_affectnet_npy(root, splits):
    folder = {"train": "train_set", "test": "val_set"}
    for split, (_, labels) in splits.items():
        place = root / folder[split] / "annotations"
        place.mkdir(parents=True)
        for i, label in enumerate(labels.tolist()):
            number = AFFECTNET_ID[label]
            np.save(place / f"{i}_exp.npy", np.array(str(number) if i % 2 else number))  # releases hold texts or numbers
            for kind in ("val", "aro", "lnd"):
                np.save(place / f"{i}_{kind}.npy", np.array(0.5))
    return save_all(root, splits, lambda split, i, label: f"{folder[split]}/images/{i}.jpg")


def write_affectnet_folders(root, splits):
    folder = {"train": "train", "test": "val"}
    return save_all(root, splits, lambda split, i, label: f"{folder[split]}/{AFFECTNET_ID[label]}/{i:05}.png")


def clear_votes(labels):
    """Ten votes an image in FERPlus's columns: eight for the label, one for the next column, one unknown."""
    votes = np.zeros((len(labels), 10), dtype=int)
    for row, label in zip(votes, labels, strict=True):
        column = FERPLUS_COLUMN[int(label)]
        row[[column, (column + 1) % 8, 8]] += (8, 1, 1)
    return votes


def write_ferplus(root, splits, votes=None):
    """Grey, 48 x 48 or as given. `votes`: {split: [N, 10]} in FERPlus's columns; train and test have label.csv, valid is in fer2013new.csv alone."""
    folder = {"train": ("FER2013Train", "Training"), "valid": ("FER2013Valid", "PublicTest"), "test": ("FER2013Test", "PrivateTest")}
    votes = votes or {split: clear_votes(labels) for split, (_, labels) in splits.items()}
    grey = {split: ([np.asarray(Image.fromarray(face).convert("L")) for face in faces], labels) for split, (faces, labels) in splits.items()}
    start = dict(zip(splits, np.cumsum([0, *(len(labels) for _, labels in splits.values())]).tolist(), strict=False))
    paths = save_all(root, grey, lambda split, i, label: f"{folder[split][0]}/fer{start[split] + i:07}.png")
    rows = {split: [[path.split("/")[1], *map(str, own)] for path, own in zip(paths[split], votes[split].tolist(), strict=True)] for split in splits}
    write_lines(root / "fer2013new.csv", [FERPLUS_HEADER, *(",".join([folder[split][1], *row]) for split in splits for row in rows[split])])
    for split in splits:
        if split != "valid":
            with open(root / folder[split][0] / "label.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([name, "(0, 0, 48, 48)", *own] for name, *own in rows[split])
    return paths


def write_sfew(root, splits):
    folder = {"train": "Train", "test": "Val"}
    return save_all(root, splits, lambda split, i, label: f"{folder[split]}/{SFEW_WORDS[label]}/Film_{i:05}.png")


def write_csv(root, splits):
    """The table is root / "faces.csv"."""
    paths = save_all(root, splits, lambda split, i, label: f"shots/{split}/{i:05}.png")
    lines = [f"{path},{Expression(label).label},{split},person {i % 5}" for split, (_, labels) in splits.items()
             for i, (path, label) in enumerate(zip(paths[split], labels.tolist(), strict=True))]
    write_lines(root / "faces.csv", ["path,label,split,identity", *lines])
    return paths


WRITERS = {  # layout -> (writer, its splits, has it contempt?, are its files lossless?)
    "class folders": (write_class_folders, ("train", "valid", "test"), True, True),
    "raf-db": (write_raf_db, ("train", "test"), False, False),
    "raf-db folders": (write_raf_db_folders, ("train", "test"), False, False),
    "affectnet csv": (write_affectnet_csv, ("train", "test"), True, True),
    "affectnet npy": (write_affectnet_npy, ("train", "test"), True, False),
    "affectnet folders": (write_affectnet_folders, ("train", "test"), True, True),
    "ferplus": (write_ferplus, ("train", "valid", "test"), True, True),
    "sfew": (write_sfew, ("train", "test"), False, True),
    "csv": (write_csv, ("train", "valid", "test"), True, True),
}
