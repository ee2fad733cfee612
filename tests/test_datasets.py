"""What is read of folders, RAF-DB, FER2013's csv and the embedded faces; bad data, one clear line each; and the validation split.

Which layouts are recognised and listed is held by test_layouts.py, single files by test_images.py, caches by test_cache.py.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cucn_nb import faces
from cucn_nb.datasets import BadFiles, DataError, FaceDataset, open, read, resize
from cucn_nb.expressions import FER2013, RAF_DB, Expression
from cucn_nb.layouts import SPLITS, listings
from cucn_nb.protocols import stratified_split, valid_indices
from cucn_nb.survey import PUBLISHED, survey, verdict

draw = np.random.default_rng(0)
HEADER = "emotion,pixels,Usage"
VOTES = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def picture(path: Path, size: tuple[int, int] = (16, 16), mode: str = "L", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def one_line(error: pytest.ExceptionInfo, *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message and len(message) < 400, message
    for word in words:
        assert word in message, message


@pytest.fixture
def album(tmp_path: Path) -> Path:
    root = tmp_path / "album"
    for folder in ("train/happy", "train/sad", "val/happy", "val/sad", "test/happy"):
        for i in range(3):
            picture(root / folder / f"{i}.png")
    return root


# Folders: what is read

def test_splits_share_one_label_order(album: Path) -> None:
    picture(album / "train" / "Surprised" / "a.png")
    train, valid, test = (read(album, split) for split in ("train", "valid", "test"))
    assert train.classes == valid.classes == test.classes == ("surprise", "happiness", "sadness")
    assert [d.counts.tolist() for d in (train, valid, test)] == [[1, 3, 3], [0, 3, 3], [0, 3, 0]]
    assert test.sources == ("test/happy/0.png", "test/happy/1.png", "test/happy/2.png") and train.name == "album"


def test_reading_twice_is_the_same(album: Path) -> None:
    assert read(album).fingerprint() == read(album).fingerprint() != read(album, "valid").fingerprint()


def test_flat_folder_is_train(tmp_path: Path) -> None:
    picture(tmp_path / "flat" / "FEAR" / "a.png")
    assert read(tmp_path / "flat").classes == ("fear",)
    with pytest.raises(DataError) as error:
        read(tmp_path / "flat", "valid")
    one_line(error, "flat", "no valid split", "train")


def test_documents_beside_folders_are_noted(album: Path) -> None:
    for place in ("labels.csv", "README.md", "train/faces.csv", "test/list.txt"):
        (album / place).write_text("x")
    data = read(album)
    assert len(data) == 6 and data.notes == ("README.md not read", "labels.csv not read", "train/faces.csv not read")


def test_embedded_faces_written_as_folders(tmp_path: Path) -> None:
    made = faces.make_set(21, seed=0, split="test", size=16)
    faces.write_folders(made, tmp_path / "out")
    (tmp_path / "out" / "test").rename(tmp_path / "out" / "train")
    data = read(tmp_path / "out", "train")
    assert data.classes == tuple(e.label for e in faces.SHOWN) and data.counts.tolist() == np.bincount(made.labels, minlength=7).tolist()


@pytest.mark.parametrize(("modes", "channels"), [(("L", "1", "LA"), 1), (("RGB", "RGBA", "P"), 3), (("L", "RGB"), 3)])
def test_one_channel_only_where_all_files_have_one(tmp_path: Path, modes: tuple[str, ...], channels: int) -> None:
    for mode in modes:
        picture(tmp_path / "d" / "sad" / f"{mode}.png", mode=mode)
    data = read(tmp_path / "d")
    assert data.images.shape == (len(modes), channels, 16, 16) and data.images.float().std() > 10


def test_any_size_when_asked(tmp_path: Path) -> None:
    picture(tmp_path / "d" / "sad" / "a.png", (40, 30))
    picture(tmp_path / "d" / "sad" / "b.png", (10, 20), "RGB")
    assert read(tmp_path / "d", image_size=24).images.shape == (2, 3, 24, 24)


def test_two_ways_to_resize_agree(album: Path) -> None:
    straight, later = read(album, "train", 9), resize(read(album, "train"), 9)
    assert (straight.images.int() - later.images.int()).abs().max() <= 2


# Folders: what is refused

def remove(path: Path) -> None:
    for child in path.iterdir():
        child.unlink()


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "unknown label in another split": (lambda r: picture(r / "test" / "feer" / "a.png"), ("album/test/feer", "unknown expression")),
    "only hidden files": (lambda r: (remove(r / "train" / "sad"), (r / "train" / "sad" / ".x").touch()), ("album/train/sad", "empty")),
    "train lacks a class": (lambda r: picture(r / "test" / "anger" / "a.png"), ("album/train", "no folder for anger")),
    "table among images": (lambda r: (r / "train" / "sad" / "a.csv").write_text("x"), ("album:", "train/sad/a.csv", "not an image")),
    "folder beside splits": (lambda r: (r / "extra").mkdir(), ("album/extra", "move it away")),
    "text file": (lambda r: (r / "train" / "sad" / "list.txt").write_text("a b"), ("album:", "train/sad/list.txt", "not an image")),
    "other size": (lambda r: picture(r / "train" / "sad" / "9.png", (20, 20)), ("train/sad/9.png", "20x20", "16x16", "image size")),
    "not square": (lambda r: picture(r / "train" / "happy" / "00.png", (20, 16)), ("20x16", "image size")),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_folder_faults(album: Path, fault: str) -> None:
    spoil, words = FOLDER_FAULTS[fault]
    assert len(read(album)) == 6
    spoil(album)
    with pytest.raises(DataError) as error:
        read(album)
    one_line(error, *words)


@pytest.mark.parametrize("size", [0, -3])
def test_size_below_one(album: Path, size: int) -> None:
    with pytest.raises(DataError, match="at least 1"):
        read(album, "train", size)
    with pytest.raises(DataError, match="at least 1"):
        resize(read(album), size)


@pytest.mark.parametrize("source", ["missing", "missing.csv", "missing/fer2013.csv"])
def test_missing_source(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path / source)
    one_line(error, "no such file or folder", source)
    for layout in ("class folders", "raf-db", "csv", "fer2013"):
        with pytest.raises(DataError) as error:
            read(tmp_path / source, layout=layout)
        one_line(error, "no such", source)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError) as error:
        read(tmp_path / "hollow")
    one_line(error, "hollow", "no known layout")
    with pytest.raises(DataError) as error:
        read(tmp_path / "hollow", layout="class folders")
    one_line(error, "hollow", "no class folders")


def test_split_that_does_not_exist(album: Path) -> None:
    with pytest.raises(DataError) as error:
        read(album, "dev")
    one_line(error, "album", "no dev split", "train, valid, test")


# What is left out

def listed(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_copies_in_two_splits(album: Path, tmp_path: Path) -> None:
    """A training image that validation or test has too, in whatever file, and a validation image that the test has too."""
    for copy, original in (("train/happy/x.bmp", "test/happy/0.png"), ("train/sad/y.bmp", "val/sad/1.png"), ("val/sad/z.bmp", "test/happy/2.png")):
        Image.open(album / original).save(album / copy)
    assert [len(read(album, split)) for split in SPLITS] == [8, 7, 3]
    assert read(album).notes == ("2 train image(s) with a pixel-identical copy in another split, such as train/happy/x.bmp = test/happy/0.png",)
    out = tmp_path / "out.csv"
    kept = {}
    for split in SPLITS:
        kept[split] = read(album, split, quarantine=out)
        assert len(listed(out)) - 1 == {"train": 2, "valid": 1, "test": 0}[split]
    assert [len(data) for data in kept.values()] == [6, 6, 3]
    assert not any(source.endswith(".bmp") for data in kept.values() for source in data.sources)
    read(album, quarantine=out)
    assert listed(out) == [["split", "path", "class", "verdict", "words"],
                           ["train", "train/happy/x.bmp", "happiness", "copy", "the same pixels as test/happy/0.png"],
                           ["train", "train/sad/y.bmp", "sadness", "copy", "the same pixels as val/sad/1.png"]]


def test_bad_files_of_one_split_stop_that_split_alone(album: Path, tmp_path: Path) -> None:
    (album / "val" / "sad" / "1.png").write_bytes(b"")
    assert len(read(album)) == 6 and len(read(album, "test")) == 3
    with pytest.raises(BadFiles) as error:
        read(album, "valid")
    one_line(error, "album: 1 of 6 image file(s)", "val/sad/1.png: empty", "quarantine")
    assert len(read(album, "valid", quarantine=tmp_path / "out.csv")) == 5


def test_nothing_is_left(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "d" / "sad" / f"{name}.png").write_bytes(b"")
    with pytest.raises(BadFiles) as error:
        read(tmp_path / "d")
    one_line(error, "2 of 2")
    with pytest.raises(DataError) as error:
        read(tmp_path / "d", quarantine=tmp_path / "out.csv")
    one_line(error, "d: no usable image of the train split")
    assert len(listed(tmp_path / "out.csv")) == 3


@pytest.mark.parametrize("place", ["nowhere/out.csv", "album"])
def test_a_list_that_cannot_be_written(album: Path, tmp_path: Path, place: str) -> None:
    with pytest.raises(DataError) as error:
        read(album, quarantine=tmp_path / place)
    one_line(error, str(tmp_path / place), "cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["album"]


@pytest.mark.parametrize(("size", "says"), [((7, 7), "too small"), ((16, 7), "too small")])
def test_small_images_are_refused_at_any_wanted_size(album: Path, size: tuple[int, int], says: str) -> None:
    picture(album / "train" / "sad" / "9.png", size)
    with pytest.raises(BadFiles) as error:
        read(album, image_size=16)
    one_line(error, "train/sad/9.png", says, f"{size[0]} x {size[1]}")


# RAF-DB

@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> tuple[Path, faces.FaceSet, faces.FaceSet]:
    path = tmp_path_factory.mktemp("rendered") / "raf"
    return path, *faces.make_raf_db(path, count=40, seed=5, size=16)


@pytest.fixture
def raf(tmp_path: Path) -> Path:
    """Seven training images (one a label), three test images."""
    root = tmp_path / "raf"
    lines = [f"train_{k:05}.jpg {k}" for k in range(1, 8)] + [f"test_{k:04}.jpg {k}" for k in range(1, 4)]
    for line in lines:
        picture(root / "Image" / "aligned" / line.split()[0].replace(".", "_aligned."), mode="RGB", quality=95)
    (root / "EmoLabel").mkdir()
    (root / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines) + "\n")
    return root


def test_rendered_faces_come_back(rendered: tuple[Path, faces.FaceSet, faces.FaceSet]) -> None:
    path, *sets = rendered
    assert [len(made) for made in sets] == [32, 8]
    for made in sets:
        data = read(path, made.split)
        assert data.labels.tolist() == made.labels.tolist() and data.name == "raf-db" and data.notes == ("faces.csv not read",)
        assert np.array_equal(data.images.permute(0, 2, 3, 1), [np.asarray(Image.open(path / source)) for source in data.sources])
        assert np.abs(data.images.permute(0, 2, 3, 1).numpy().astype(int) - made.images).mean() < 6
    with pytest.raises(faces.FaceError, match="not empty"):
        faces.make_raf_db(path, count=40, seed=5, size=16)


def test_raf_labels_and_sources(raf: Path) -> None:
    train, test = read(raf, "train"), read(raf, "test", image_size=9)
    assert train.labels.tolist() == [RAF_DB[k] for k in range(1, 8)] == list(range(7)) and train.counts.tolist() == [1] * 7
    assert train.classes == test.classes == tuple(e.label for e in Expression)[:7] and test.counts.tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert train.sources[4] == "Image/aligned/train_00005_aligned.jpg" and test.sources[2] == "Image/aligned/test_0003_aligned.jpg"
    assert test.image_size == 9 and train.notes == () and train.split == "train"


def test_raf_order_is_that_of_the_list(raf: Path) -> None:
    file = raf / "EmoLabel" / "list_patition_label.txt"
    file.write_text("\ufeff" + "\r\n".join(reversed(file.read_text().splitlines())) + "\r\n\r\n", encoding="utf-8")
    assert read(raf).labels.tolist() == list(range(7))[::-1]


def test_raf_what_lies_beside_is_noted(raf: Path) -> None:
    for place in ("Annotation", "Image/original"):
        (raf / place).mkdir()
    (raf / "readme.txt").write_text("x")
    (raf / "EmoLabel" / "other.txt").write_text("x")
    (raf / "Image" / "aligned" / ".DS_Store").write_text("x")
    notes = ("Annotation not read", "readme.txt not read", "EmoLabel/other.txt not read", "Image/original not read")
    assert read(raf).notes == notes and survey(raf).notes == notes


TEXT, ALIGNED = "EmoLabel/list_patition_label.txt", "Image/aligned"
LIST = f"raf/{TEXT}"


def relist(old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        file = root / TEXT
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))
    return change


RAF_FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "list spelt right": (lambda r: (r / TEXT).rename(r / "EmoLabel/list.txt"), (LIST, "spelt so")),
    "no list folder": (lambda r: (remove(r / "EmoLabel"), (r / "EmoLabel").rmdir()), (LIST, "no such file")),
    "empty list": (lambda r: (r / TEXT).write_text(""), (f"{LIST} line 1", "0 field")),
    "three fields": (relist("train_00003.jpg 3", "train_00003.jpg 3 3"), (f"{LIST} line 3", "3 field")),
    "blank line": (relist("train_00003.jpg 3", ""), (f"{LIST} line 3", "0 field")),
    "label 8": (relist(" 3", " 8"), (f"{LIST} line 3", "'8' is outside 1..7")),
    "label in words": (relist(" 3", " disgust"), (f"{LIST} line 3", "'disgust' is outside 1..7")),
    "path as name": (relist("train_00003.jpg", "../train_00003.jpg"), (f"{LIST} line 3", "neither")),
    "path in a name": (relist("train_00003.jpg", "train_/../../x.jpg"), (f"{LIST} line 3", "missing")),
    "no images": (lambda r: (remove(r / ALIGNED), (r / ALIGNED).rmdir()), (f"raf/{ALIGNED}", "no such folder")),
    "folder among images": (lambda r: (r / ALIGNED / "more").mkdir(), (f"raf/{ALIGNED}/more", "not named in")),
    "damaged": (lambda r: (r / ALIGNED / "train_00003_aligned.jpg").write_bytes(b"\xff\xd8\xff"),
        (f"{ALIGNED}/train_00003_aligned.jpg", "not an image")),
    "other size": (lambda r: picture(r / ALIGNED / "train_00003_aligned.jpg", (20, 20)),
        (f"{ALIGNED}/train_00003_aligned.jpg", "20x20", "image size")),
}


@pytest.mark.parametrize("fault", RAF_FAULTS)
def test_raf_faults(raf: Path, fault: str) -> None:
    spoil, words = RAF_FAULTS[fault]
    assert len(read(raf)) == 7
    spoil(raf)
    with pytest.raises(DataError) as error:
        read(raf)
    one_line(error, *words)


def test_raf_splits(raf: Path) -> None:
    with pytest.raises(DataError) as error:
        read(raf, "valid")
    one_line(error, "no valid split", "cut a validation split from train")
    for k in range(1, 4):
        (raf / "Image" / "aligned" / f"test_{k:04}_aligned.jpg").unlink()
        relist(f"test_{k:04}.jpg {k}", "")(raf)
    assert len(read(raf)) == 7
    with pytest.raises(DataError, match="no test split in it, only train$"):
        read(raf, "test")
    assert survey(raf).verdict == "a subset by its counts: 7 of 12,271 train images and 0 of 3,068 test images"


# What a source is, and whether it is all there

def test_the_word_faces_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "faces" / "happy" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert open("faces").layout == "faces" and not open("faces").splits and len(read("faces")) == 5000
    assert open("./faces").layout == open(Path("faces")).layout == "class folders" and len(read("./faces")) == 1
    assert str(open("./faces")) == "./faces: class folders, since it holds happy"


def test_as_many_files_as_rafdb_has_are_complete(tmp_path: Path) -> None:
    lines = []
    aligned = tmp_path / "full" / "Image" / "aligned"
    aligned.mkdir(parents=True)
    for split, digits in (("train", 5), ("test", 4)):
        labels = [label + 1 for label, count in enumerate(PUBLISHED["raf-db"][split]) for _ in range(count)]
        for k, label in enumerate(labels, 1):
            lines.append(f"{split}_{k:0{digits}}.jpg {label}")
            (aligned / f"{split}_{k:0{digits}}_aligned.jpg").touch()
    (tmp_path / "full" / "EmoLabel").mkdir()
    (tmp_path / "full" / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines))
    found = listings(tmp_path / "full")
    assert [len(listing) for listing in found.values()] == [12271, 3068]
    assert verdict("raf-db", {split: listing.counts for split, listing in found.items()}) == "complete: equals the published counts"


def test_survey_of_folders(album: Path) -> None:
    picture(album / "test" / "happy" / "wide.png", (20, 10), "RGB")
    (album / "list.csv").write_text("x")
    found = survey(album)
    assert found.listed == found.given == {"train": (3, 3), "valid": (3, 3), "test": (4, 0)}
    assert "images: 16x16 (15), 20x10 (1); grey (15), rgb (1)" in str(found) and found.notes == ("list.csv not read",)
    assert str(found).startswith(f"{album}: class folders, since it holds test, train, val\n") and found.classes == ("happiness", "sadness")


def test_survey_of_fer2013(fer: Path) -> None:
    edit(fer / "fer2013.csv", 1, lambda _: f"0,{numbers(0)},Training")
    found = survey(fer / "fer2013.csv")
    assert sum(found.listed["train"]) == 7 and sum(found.given["train"]) == 6 and sum(found.listed["test"]) == 2
    assert "train: 1 black row(s) left out" in found.notes and "1 PrivateTest row(s) not read" in found.notes
    assert str(found).splitlines()[1].split() == ["train", "read", "published", "test", "published"]
    assert found.verdict == "a subset by its counts: 7 of 28,709 train images and 2 of 3,589 test images"
    (fer / "fer2013.csv").write_text(f"{HEADER}\n0,{numbers()},PrivateTest\n")
    with pytest.raises(DataError, match="no row of Training or PublicTest"):
        survey(fer)


# FER2013

def numbers(value: int | None = None) -> str:
    pixels = draw.integers(0, 256, 48 * 48) if value is None else np.full(48 * 48, value)
    return " ".join(map(str, pixels))


@pytest.fixture
def fer(tmp_path: Path) -> Path:
    """Seven training rows (one a label), two PublicTest rows, one PrivateTest row, votes beside them."""
    usages = ["Training"] * 7 + ["PublicTest"] * 2 + ["PrivateTest"]
    emotions = [*range(7), 0, 3, 6]
    folder = tmp_path / "fer"
    folder.mkdir()
    rows = [f"{e},{numbers()},{u}" for e, u in zip(emotions, usages, strict=True)]
    votes = [f"{u},fer{i:07}.png,{','.join(str(int(k == i % 8) * 9) for k in range(8))},1,0" for i, u in enumerate(usages)]
    (folder / "fer2013.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (folder / "fer2013new.csv").write_text("\n".join([VOTES, *votes]) + "\n")
    return folder


def edit(file: Path, line: int, change: Callable[[str], str]) -> None:
    lines = file.read_text().splitlines()
    lines[line] = change(lines[line])
    file.write_text("\n".join(text for text in lines if text) + "\n")


def test_fer_labels_and_votes(fer: Path) -> None:
    train, test = read(fer, "train"), read(fer / "fer2013.csv", "test")
    assert train.labels.tolist() == [FER2013[i] for i in range(7)] and test.labels.tolist() == [Expression.ANGER, Expression.HAPPINESS]
    assert train.counts.tolist() == [1] * 7 and train.vote_names is not None and train.votes is not None
    columns = VOTES.split(",")[2:]
    for i in range(7):  # row i has its nine votes in column i of the file
        assert train.vote_names[int(train.votes[i].argmax())] == columns[i]
    assert train.votes.sum(1).tolist() == [10] * 7 and train.vote_names[8:] == ("unknown", "not a face")
    assert test.sources == ("fer2013.csv row 7", "fer2013.csv row 8")


def test_fer_other_column_order_and_quotes(fer: Path) -> None:
    """Later releases of the csv have the columns in another order, with spaces in the header and quoted pixels."""
    want = read(fer, "train").fingerprint()
    lines = (fer / "fer2013.csv").read_text().splitlines()[1:]
    moved = [f'{usage},{emotion},"{pixels}"' for emotion, pixels, usage in (line.split(",") for line in lines)]
    (fer / "fer2013.csv").write_text("\r\n".join([" Usage,emotion, pixels", *moved]) + "\r\n")
    assert read(fer, "train").fingerprint() == want


def test_fer_left_out(fer: Path) -> None:
    file, votes = fer / "fer2013.csv", fer / "fer2013new.csv"
    pixels = file.read_text().splitlines()[8].split(",")[1]  # the first PublicTest row
    edit(file, 1, lambda _: f"0,{numbers(0)},Training")
    edit(file, 3, lambda _: f"2,{pixels},Training")
    edit(votes, 5, lambda _: "Training,fer0000004.png,0,0,0,0,0,0,0,0,3,7")
    data = read(fer, "train")
    assert data.sources == tuple(f"fer2013.csv row {i}" for i in (1, 3, 5, 6))
    assert [note.split()[0] for note in data.notes] == ["1", "1", "1"]
    assert len(read(fer, "test")) == 2
    votes.unlink()
    assert len(read(fer, "train")) == 5 and read(fer, "train").votes is None


FER_FAULTS: dict[str, tuple[str, int, Callable[[str], str], tuple[str, ...]]] = {
    "short row": ("fer2013.csv", 2, lambda s: s.replace(" ", "", 1), ("line 3 (row 1)", "2303 pixels")),
    "no pixels": ("fer2013.csv", 2, lambda s: "0,,Training", ("line 3 (row 1)", "0 pixels")),
    "blank pixels": ("fer2013.csv", 2, lambda s: "0,  ,Training", ("line 3 (row 1)", "0 pixels")),
    "long row": ("fer2013.csv", 2, lambda s: s.replace(" ", " 7 ", 1), ("line 3 (row 1)", "2305 pixels")),
    "pixel 256": ("fer2013.csv", 1, lambda s: f"0,{numbers()[:-3].rsplit(' ', 1)[0]} 256,Training", ("row 0",)),
    "huge pixel": ("fer2013.csv", 1, lambda s: f"0,{numbers(1)[:-1]}99999999999999999999999,Training", ("row 0", "0 to 255")),
    "negative pixel": ("fer2013.csv", 1, lambda s: s.replace(" ", " -", 1), ("row 0", "0 to 255")),
    "word as pixel": ("fer2013.csv", 1, lambda s: s.replace(" ", " x", 1), ("row 0", "0 to 255")),
    "half a pixel": ("fer2013.csv", 1, lambda s: s.replace(" ", ".5 ", 1), ("row 0", "0 to 255")),
    "bad test row": ("fer2013.csv", 8, lambda s: s.replace(" ", "", 1), ("line 9 (row 7)", "2303 pixels")),
    "emotion 7": ("fer2013.csv", 3, lambda s: "7" + s[1:], ("line 4 (row 2)", "emotion '7'")),
    "no emotion": ("fer2013.csv", 3, lambda s: s[1:], ("line 4 (row 2)", "emotion ''")),
    "usage": ("fer2013.csv", 3, lambda s: s.replace("Training", "training"), ("line 4 (row 2)", "'training'")),
    "two fields": ("fer2013.csv", 3, lambda s: s.rsplit(",", 1)[0], ("line 4 (row 2)", "2 fields")),
    "column": ("fer2013.csv", 0, lambda s: s.replace("Usage", "Use"), ("no column 'Usage'",)),
    "no header": ("fer2013.csv", 0, lambda s: "", ("no column 'emotion'",)),
    "row lost": ("fer2013.csv", 10, lambda s: "", ("fer2013new.csv has 10 rows", "fer2013.csv has 9")),
    "vote row lost": ("fer2013new.csv", 10, lambda s: "", ("fer2013new.csv has 9 rows", "fer2013.csv has 10")),
    "vote row shifted": ("fer2013new.csv", 1, lambda s: "", ("line 8 (row 6)", "do not belong together")),
    "vote word": ("fer2013new.csv", 2, lambda s: s.replace(",9,", ",nine,"), ("fer2013new.csv line 3 (row 1)", "nine")),
    "vote column": ("fer2013new.csv", 0, lambda s: s.replace("contempt", "pride"), ("no column 'contempt'",)),
}


@pytest.mark.parametrize("fault", FER_FAULTS)
def test_fer_faults(fer: Path, fault: str) -> None:
    file, line, change, words = FER_FAULTS[fault]
    assert len(read(fer, "train")) == 7
    edit(fer / file, line, change)
    with pytest.raises(DataError) as error:
        read(fer, "train")
    one_line(error, *words)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\xff\xfe\x00", b"emotion,pixels,Usage\n", b'emotion,pixels,Usage\n"0,1'])
def test_fer_not_the_csv(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fer2013.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    one_line(error, "fer2013.csv")


def test_fer_all_rows_left_out(tmp_path: Path) -> None:
    (tmp_path / "fer2013.csv").write_text(f"{HEADER}\n0,{numbers(0)},Training\n")
    with pytest.raises(DataError, match="no usable row of the train split"):
        read(tmp_path)


def test_neither_folder_nor_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a folder nor a csv"):
        read(picture(tmp_path / "a.png"))


# The validation split

def toy(counts: list[int], **fields) -> FaceDataset:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    pixels = torch.from_numpy(draw.integers(0, 256, (len(labels), 1, 6, 6), dtype=np.uint8))
    given = dict(images=pixels, labels=labels, classes=tuple("abcdefgh"[:len(counts)]), name="toy", split="train", sources=range(len(labels)))
    return FaceDataset(**(given | fields))


@pytest.mark.parametrize("fraction", [.05, .1, .25, .5, .9])
@pytest.mark.parametrize("counts", [[2, 2], [3, 50, 1000], [281, 717, 705, 1290]])
def test_split_counts(counts: list[int], fraction: float) -> None:
    train, valid = stratified_split(toy(counts), fraction, seed=3)
    for whole, left, cut in zip(counts, train.counts.tolist(), valid.counts.tolist(), strict=True):
        assert left + cut == whole and left >= 1 and cut >= 1
        assert cut == min(max(round(fraction * whole), 1), whole - 1)
    assert not set(train.sources) & set(valid.sources)


def test_split_does_not_depend_on_other_generators() -> None:
    data = toy([50, 50])
    torch.manual_seed(1)
    first = valid_indices(data, .2, 5)
    torch.manual_seed(2)
    np.random.seed(0)
    assert torch.equal(first, valid_indices(data, .2, 5)) and torch.equal(first, first.sort().values)


@pytest.mark.parametrize("persons", [2, 5, 30])
def test_split_keeps_people_whole(persons: int) -> None:
    counts = [60, 60, 60]
    data = toy(counts, identity=torch.arange(180) % persons)
    for seed in range(5):
        train, valid = stratified_split(data, .1, seed)
        assert train.identity is not None and valid.identity is not None
        assert not set(train.identity.tolist()) & set(valid.identity.tolist())
        assert (train.counts > 0).all() and (valid.counts > 0).all()


def test_split_of_copies_of_one_image() -> None:
    same = torch.zeros((4, 1, 6, 6), dtype=torch.uint8)
    with pytest.raises(DataError) as error:
        stratified_split(toy([2, 2], images=same))
    one_line(error, "class a", "copies of one another")


@pytest.mark.parametrize("fraction", [0, 1, -.1, float("nan")])
def test_split_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        stratified_split(toy([5, 5]), fraction)


def test_split_of_memory_mapped_images(tmp_path: Path) -> None:
    data = toy([20, 20])
    np.save(tmp_path / "images.npy", data.images)
    mapped = toy([20, 20], images=np.load(tmp_path / "images.npy", mmap_mode="r"))
    assert torch.equal(valid_indices(mapped), valid_indices(data)) and mapped.fingerprint() == data.fingerprint()
    assert stratified_split(mapped)[1].fingerprint() == stratified_split(data)[1].fingerprint()


# The embedded faces

def test_embedded_faces() -> None:
    train, test = read("faces", "train"), read("faces", "test", image_size=32)
    assert (len(train), len(test)) == (5000, 1400) and test.image_size == 32 and train.image_size == 64
    assert train.identity is not None and test.identity is not None and train.blend is not None and train.votes is not None
    assert not set(train.identity.tolist()) & set(test.identity.tolist())
    part, valid = stratified_split(train, .1, 0)
    assert part.identity is not None and valid.identity is not None and not set(part.identity.tolist()) & set(valid.identity.tolist())
    assert (part.counts > 0).all() and (valid.counts > 0).all() and len(part) + len(valid) == 5000
    assert valid.attributes is not None and all(len(value) == len(valid) for value in valid.attributes.values())


def test_embedded_faces_have_no_validation_split() -> None:
    with pytest.raises(DataError) as error:
        read("faces", "valid")
    one_line(error, "no valid split", "cut a validation split from train")
