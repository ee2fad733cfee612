"""Faces written in every layout are recognised and listed as written; what is wrong is named in one line; FERPlus's votes give the known counts."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from layout_writers import AFFECTNET_HEADER, BORDER, WRITERS, clear_votes, save, write_lines
from PIL import Image

from cucn_nb import faces
from cucn_nb.expressions import FERPLUS, Expression
from cucn_nb.images import DataError, decode
from cucn_nb.layouts import LAYOUTS, SPLITS, VOTE_RULES, listings, majority, recognise

VOTES = Path(__file__).parent / "data" / "ferplus_votes.npz"


@pytest.fixture(scope="module")
def some_faces():
    """16 embedded faces with each of the eight labels in turn, so that a split may have contempt."""
    return faces.load("test").images[:16], np.arange(16) % 8


def make(layout, root, some_faces):
    """(path to read, paths as written, labels, faces) of `some_faces` in one layout; every split has the same ones."""
    writer, splits, contempt, _ = WRITERS[layout]
    images, labels = some_faces
    kept = labels < (8 if contempt else 7)
    paths = writer(root, {split: (images[kept], labels[kept]) for split in splits})
    return root / "faces.csv" if layout == "csv" else root, paths, labels[kept], images[kept]


each_layout = pytest.mark.parametrize("layout", WRITERS)


@each_layout
def test_what_was_written_is_recognised_and_listed(layout, tmp_path, some_faces):
    path, paths, labels, images = make(layout, tmp_path / "data", some_faces)
    name, reason = recognise(path)
    assert name == layout and "\n" not in reason
    found = listings(path)
    assert list(found) == [split for split in SPLITS if split in paths]
    for split, listing in found.items():
        assert listing.root == tmp_path / "data" and listing.split == split
        assert listing.classes == tuple(e.label for e in Expression)[: len(set(labels.tolist()))]
        assert dict(zip(listing.files, listing.labels, strict=True)) == dict(zip(paths[split], labels.tolist(), strict=True))
        assert len(listing) == len(images) == sum(listing.counts)
        assert (listing.boxes is not None) == (layout == "affectnet csv") and (listing.votes is not None) == (layout == "ferplus")
        assert all((listing.root / document).exists() for document in listing.documents)
        as_test = layout.startswith("affectnet") or layout == "sfew"
        assert any("read as test" in note for note in listing.notes) == (as_test and split == "test")


@each_layout
def test_the_listed_files_hold_the_faces(layout, tmp_path, some_faces):
    path, paths, _, images = make(layout, tmp_path / "data", some_faces)
    lossless = WRITERS[layout][3]
    for split, listing in listings(path).items():
        for i, file in enumerate(listing.files):
            verdict, pixels = decode(listing.root / file, listing.boxes[i] if listing.boxes else None)
            face = images[paths[split].index(file)]
            face = np.asarray(Image.fromarray(face).convert("L").convert("RGB")) if layout == "ferplus" else face
            assert verdict.accepted and pixels.shape == face.shape
            assert np.array_equal(pixels, face) if lossless else np.abs(pixels.astype(int) - face).mean() < 6


@each_layout
def test_layouts_are_described_and_listed_in_a_stable_order(layout, tmp_path, some_faces):
    path, *_ = make(layout, tmp_path / "data", some_faces)
    assert layout in LAYOUTS and LAYOUTS.keys() - WRITERS.keys() == {"fer2013"}
    assert [listing.files for listing in listings(path).values()] == [listing.files for listing in listings(path, layout).values()]


@pytest.mark.parametrize("layout", ["affectnet csv", "affectnet npy", "affectnet folders", "ferplus"])
def test_contempt_is_left_out_and_counted(layout, tmp_path, some_faces):
    path, *_ = make(layout, tmp_path / "data", some_faces)
    eight, seven = listings(path, num_classes=8), listings(path, num_classes=7)
    for split, listing in seven.items():
        assert listing.counts == eight[split].counts[:7] and listing.classes == eight[split].classes[:7]
        assert listing.notes[-1].startswith("2 image(s) of contempt left out")
        assert listing.boxes is None or len(listing.boxes) == len(listing)
        assert listing.votes is None or listing.votes.shape == (len(listing), 10)


def test_boxes_votes_and_identity_stay_beside_their_files(tmp_path, some_faces):
    images, labels = some_faces
    older, paths, *_ = make("affectnet csv", tmp_path / "older", some_faces)
    assert set(listings(older)["train"].boxes) == {(*BORDER, images.shape[2], images.shape[1])}
    plus, *_ = make("ferplus", tmp_path / "plus", some_faces)
    for listing in listings(plus).values():
        assert listing.votes.dtype == np.float32 and listing.vote_names == (*(e.label for e in Expression), "unknown", "not a face")
        assert listing.votes.argmax(1).tolist() == listing.labels and (listing.votes[:, 8] == 1).all() and (listing.votes.sum(1) == 10).all()
    table, paths, *_ = make("csv", tmp_path / "table", some_faces)
    assert listings(table)["valid"].identity == [f"person {i % 5}" for i in range(len(labels))]


def test_layouts_import_no_torch():
    code = "import sys, cucn_nb.layouts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- refusals: (layout, what to spoil, what the message names) ---


def replace_text(file, old, new):
    def spoil(root):
        text = (root / file).read_text()
        assert old in text, f"{old!r} is not in {file}"
        (root / file).write_text(text.replace(old, new, 1))

    return spoil


def remove(file):
    return lambda root: (root / file).unlink()


def add(file):
    return lambda root: save(root / file, np.zeros((12, 12, 3), dtype=np.uint8))


def label(array, file="train_set/annotations/0_exp.npy"):
    return lambda root: np.save(root / file, array)


RAF = "EmoLabel/list_patition_label.txt"
OLDER = "Manually_Annotated_file_lists/training.csv"
NEWER = "train_set/annotations"
PLUS = "FER2013Train/label.csv"
REFUSALS = [
    ("class folders", add("train/feer/1.png"), "train/feer: unknown expression 'feer'"),
    ("class folders", add("train/Happy/1.png"), "a second folder for happiness"),
    ("class folders", add("train/happiness/deep/1.png"), "train/happiness/deep: a folder inside"),
    ("class folders", add("train/lost.png"), "train/lost.png: a file where only class folders"),
    ("class folders", add("other/1.png"), "other: lies beside the split folders"),
    ("class folders", add("val/happiness/1.png"), "a second folder of the valid split"),
    ("class folders", lambda root: (root / "train" / "Joyful").mkdir(), "Joyful"),
    ("class folders", lambda root: [file.unlink() for file in (root / "test" / "fear").iterdir()], "test/fear: the class folder is empty"),
    ("class folders", lambda root: (root / "train" / "fear").rename(root / "fear"), "fear: lies beside"),
    ("raf-db", replace_text(RAF, "train_00001.jpg 1", "train_00001.jpg 0"), "line 1: label '0' is outside 1..7 (labels 0..6: off by one?)"),
    ("raf-db", replace_text(RAF, "train_00001.jpg 1", "train_00001.jpg"), "line 1: 1 field(s)"),
    ("raf-db", replace_text(RAF, "train_00001", "valid_00001"), "neither with train_ nor with test_"),
    ("raf-db", replace_text(RAF, "train_00002", "train_00001"), "line 2: train_00001.jpg is listed twice, first in line 1"),
    ("raf-db", replace_text(RAF, "train_00002", "train_/../../x"), "line 2: the name of an image is missing, 'train_/../../x.jpg' is a path"),
    ("raf-db", replace_text(RAF, "train_00002", "train_\\..\\x"), "is a path and may lead out of the folder"),
    ("raf-db", remove("Image/aligned/train_00002_aligned.jpg"), "line 2: Image/aligned/train_00002_aligned.jpg is missing (1 of 28 images)"),
    ("raf-db", add("Image/aligned/train_00099_aligned.jpg"), "train_00099_aligned.jpg: not named in EmoLabel"),
    ("raf-db", remove(RAF), "list_patition_label.txt: no such file"),
    ("raf-db", lambda root: (root / RAF).write_bytes(b"\xff\xfe\x00"), "cannot be read as a list of labels"),
    ("raf-db folders", replace_text("train_labels.csv", "_aligned.jpg,1", "_aligned.jpg,2"), "line 2: label '2', but the image is DATASET/train/1/"),
    ("raf-db folders", remove("DATASET/test/3/test_00002_aligned.jpg"), "test_labels.csv line 4: test_00002_aligned.jpg is missing"),
    ("raf-db folders", add("DATASET/test/3/new.jpg"), "DATASET/test/3/new.jpg: not named in test_labels.csv (1 such)"),
    ("raf-db folders", replace_text("test_labels.csv", "test_00001_", "test_00000_"), "test_00000_aligned.jpg is listed twice, first in line 2"),
    ("affectnet csv", replace_text(OLDER, ",3,0.1", ",11,0.1"), "training.csv line 2: expression '11' is outside 0..10"),
    ("affectnet csv", replace_text(OLDER, "train0/", "../"), "line 2: '../"),
    ("affectnet csv", replace_text(OLDER, "train0/", "train9/"), "(1 of 16 images)"),
    ("affectnet csv", replace_text(OLDER, ",5,3,", ",x,3,"), "line 2: the box of the face is x, 3, "),
    ("affectnet csv", replace_text(OLDER, "face_width", "width"), "no column 'face_width'"),
    ("affectnet csv", replace_text(OLDER, ",0.1,-0.2", ",0.1"), "line 2: 8 fields, the first line has 9"),
    ("affectnet csv", lambda root: write_lines(root / "training.csv", ["a,b"]), f"{OLDER}: a second copy beside 'training.csv'"),
    ("affectnet csv", lambda root: (root / "Manually_Annotated_Images").rename(root / "Manual"), "Manually_Annotated_Images: no such folder"),
    ("affectnet csv", replace_text(OLDER, f"train1/{1:032x}", f"train0/{0:032x}"), "is listed twice with other labels, first in line 2; keep one"),
    ("affectnet csv", replace_text(OLDER.replace("training", "validation"), f"test1/{1:032x}", f"train0/{0:032x}"), f"listed in {OLDER} line 2, and"),
    ("affectnet npy", add("train_set/images/3.JPG"), "train_set/images/3.jpg: has the number of '3.JPG' beside it"),
    ("affectnet npy", label(np.array({"a": 1})), "train_set/annotations/0_exp.npy: an array of Python objects, which is never unpickled"),
    ("affectnet npy", label(np.array([1, 2])), "0_exp.npy: not one number or text"),
    ("affectnet npy", label(np.array("11")), "0_exp.npy: expression '11' is outside 0..10"),
    ("affectnet npy", label(np.array(1.5)), "0_exp.npy: expression '1.5'"),
    ("affectnet npy", lambda root: (root / NEWER / "0_exp.npy").write_bytes(b"\x80\x04K\x01."), "0_exp.npy: not one number or text"),
    ("affectnet npy", lambda root: (root / NEWER / "0_exp.npy").write_bytes(b""), "0_exp.npy: not one number or text"),
    ("affectnet npy", remove(f"{NEWER}/3_exp.npy"), "annotations/3_exp.npy: no such file (1 such)"),
    ("affectnet npy", remove("val_set/images/3.jpg"), "val_set/images/3.jpg: no such file (1 such)"),
    ("affectnet npy", add("val_set/images/3.png"), "val_set/images/3.png: AffectNet's images are called like 12.jpg"),
    ("affectnet folders", add("train/8/1.png"), "their order is written nowhere"),
    ("ferplus", replace_text(PLUS, "fer0000001", "fer0000000"), "line 2: fer0000000.png is listed twice with different votes, first in line 1"),
    ("ferplus", replace_text(PLUS, ",8", ",-8"), "line 1: votes must be whole numbers"),
    ("ferplus", replace_text(PLUS, "fer0000001", "fer9999999"), "FER2013Train/fer0000001.png: not named in FER2013Train/label.csv (1 such)"),
    ("ferplus", remove("FER2013Valid/fer0000016.png"), "FER2013Valid/fer0000016.png is missing (1 of 16 images)"),
    ("ferplus", remove("fer2013new.csv"), "FER2013Valid/label.csv: no such file, and no fer2013new.csv"),
    ("ferplus", replace_text(PLUS, ",8", ""), "line 1: votes must be whole numbers, they are '(0, 0, 48, 48)"),
    ("ferplus", replace_text(PLUS, ",0,0", ""), "line 1: 10 fields, not a name, a box and ten votes"),
    ("sfew", add("Train/Angry/deep/1.png"), "Train/Angry/deep: a folder inside"),
    ("csv", replace_text("faces.csv", ",surprise,", ",1,"), "line 2: label '1' is a number"),
    ("csv", replace_text("faces.csv", ",surprise,", ",surprize,"), "line 2: unknown expression 'surprize'"),
    ("csv", replace_text("faces.csv", "shots/train/00001", "./shots//train/00000"), "line 3: shots/train/00000.png is listed twice, first in line 2"),
    ("csv", replace_text("faces.csv", "shots/train/00001.png", "/etc/passwd"), "line 3: '/etc/passwd' may lead out"),
    ("csv", replace_text("faces.csv", "shots/train/00001", "shots/../../00001"), "line 3: 'shots/../../00001.png' may lead out"),
    ("csv", replace_text("faces.csv", "shots/train/00001.png", r"shots\00001.png"), "with / between folders"),
    ("csv", remove("shots/test/00004.png"), "shots/test/00004.png is missing (1 of 48 images)"),
    ("csv", replace_text("faces.csv", ",train,", ",dev,"), "line 2: split 'dev'"),
    ("csv", replace_text("faces.csv", ",person 0", ","), "line 2: no identity"),
    ("csv", replace_text("faces.csv", ",person 0", ",person,0"), "line 2: 5 fields, the first line has 4"),
    ("csv", replace_text("faces.csv", "path,label,split,identity", "path;label;split;identity"), "faces.csv: separated by ';'; save it with commas"),
    ("csv", replace_text("faces.csv", "path,label,split,identity", '"path"\t"label"'), "faces.csv: separated by tabs; save it with commas"),
    ("csv", replace_text("faces.csv", "shots/train/00001", '"shots/train/00001'), 'faces.csv line 3: a quote (") is opened and never closed'),
    ("csv", replace_text("faces.csv", "shots/train/00001.png", '"shots" x'), "faces.csv line 3: its quotes cannot be understood"),
    ("csv", lambda root: write_lines(root / "faces.csv", ["path,label", 'a.png,"happy', 'b.png",sad']), "line 2: a field goes on over"),
    ("csv", replace_text("faces.csv", "split,identity", "label,Label"), "more than one column 'label'"),
    ("csv", replace_text("faces.csv", "path,", "file,"), "but emotion,pixels,Usage or path,label is needed"),
    ("csv", lambda root: (root / "faces.csv").write_text(""), "faces.csv: the file is empty"),
    ("csv", lambda root: (root / "faces.csv").write_text("path,label\n"), "no usable image"),
    ("csv", lambda root: (root / "faces.csv").write_bytes(b"path,label\n\xff\xfe"), "cannot be read as a csv file"),
]


@pytest.mark.parametrize(("layout", "spoil", "message"), REFUSALS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_named(layout, spoil, message, tmp_path, some_faces):
    path, *_ = make(layout, tmp_path / "data", some_faces)
    spoil(tmp_path / "data")
    with pytest.raises(DataError) as caught:
        listings(path, None if layout in ("csv", "affectnet folders") else layout)
    said = str(caught.value)
    assert message in said and "\n" not in said and len(said) < 400


def test_names_with_strange_characters_stay_one_short_line(tmp_path):
    save(tmp_path / "data" / "train" / ("x\n" * 100) / "1.png", np.zeros((12, 12, 3), dtype=np.uint8))
    with pytest.raises(DataError) as caught:
        listings(tmp_path / "data")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600 and r"x\nx" in str(caught.value)


# --- which layout ---


@pytest.mark.parametrize(
    ("tree", "layout"),
    [
        (["train/{1-7}", "test/{1-7}"], "raf-db folders"),
        (["DATASET/train/{1-7}", "DATASET/test/{1-7}"], "raf-db folders"),
        (["train/{0-7}", "val/{0-7}"], "affectnet folders"),
        (["train/{0-6}", "val/{0-6}"], "affectnet folders"),
        (["train/{0-6}", "test/{0-6}"], None),
        (["train/{1-7}", "val/{1-7}"], None),
        (["train/{0-7}", "val/{0-6}"], None),
        (["train/{0-7}", "val/{0-7}", "test/{0-7}"], None),
        (["train/{1-7}"], None),
        (["{1-7}"], None),
        (["{0-7}"], None),
    ],
    ids=str,
)
def test_numbers_are_understood_only_where_one_source_makes_them(tree, layout, tmp_path):
    for folder in tree:
        base, _, numbers = folder.rpartition("{")
        for number in range(int(numbers[0]), int(numbers[2]) + 1):
            save(tmp_path / f"{base}{number}" / "1.png", np.zeros((12, 12, 3), dtype=np.uint8))
    if layout:
        assert recognise(tmp_path)[0] == layout
        assert all(len(listing) == len(listing.classes) for listing in listings(tmp_path).values())
        return
    with pytest.raises(DataError) as caught:
        recognise(tmp_path)
    assert "their order is written nowhere" in str(caught.value) and 'layout="raf-db folders"' in str(caught.value) and len(str(caught.value)) < 400


def test_named_by_hand_numbers_are_read_in_that_order(tmp_path):
    for split in ("train", "test"):
        for number in (1, 2, 6):
            save(tmp_path / split / str(number) / "1.png", np.zeros((12, 12, 3), dtype=np.uint8))
    raf, affect = listings(tmp_path, "raf-db folders")["test"], listings(tmp_path, "affectnet folders")["test"]
    read = [{file[5]: found.classes[label] for file, label in zip(found.files, found.labels, strict=True)} for found in (raf, affect)]
    assert read == [{"1": "surprise", "2": "fear", "6": "anger"}, {"1": "happiness", "2": "sadness", "6": "anger"}]
    assert len(raf.classes) == len(affect.classes) == 7


def test_seven_names_under_train_and_val_are_sfew_and_others_class_folders(tmp_path, some_faces):
    make("sfew", tmp_path, some_faces)
    assert recognise(tmp_path)[0] == "sfew"
    (tmp_path / "Val" / "Happy").rename(tmp_path / "Val" / "happy")
    assert recognise(tmp_path)[0] == "class folders" and list(listings(tmp_path)) == ["train", "valid"]
    (tmp_path / "Val" / "happy").rename(tmp_path / "Val" / "Happy")
    (tmp_path / "Train").rename(tmp_path / "Train_Aligned_Faces")
    (tmp_path / "Val").rename(tmp_path / "Val_Aligned_Faces_new")
    assert recognise(tmp_path)[0] == "sfew" and list(listings(tmp_path)) == ["train", "test"]


def test_no_layout_and_two_layouts_are_refused(tmp_path, some_faces):
    def refusal(path, **options):
        with pytest.raises(DataError) as caught:
            listings(path, **options)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        return str(caught.value)

    assert "no such file or folder" in refusal(tmp_path / "nowhere")
    assert "no such folder" in refusal(tmp_path / "nowhere", layout="sfew")
    (tmp_path / "empty").mkdir()
    assert "no known layout" in refusal(tmp_path / "empty") and "it holds nothing" in refusal(tmp_path / "empty")
    (tmp_path / "text.txt").write_text("")
    assert "neither a folder nor a csv file" in refusal(tmp_path / "text.txt")
    make("ferplus", tmp_path / "both", some_faces)
    make("class folders", tmp_path / "both", some_faces)
    assert "more than one layout: ferplus" in refusal(tmp_path / "both") and len(listings(tmp_path / "both", "ferplus")["train"]) == 16
    assert "not one of" in refusal(tmp_path / "both", layout="fer")
    assert "no choice of classes" in refusal(tmp_path / "both", layout="class folders", num_classes=7)
    assert "num_classes=5" in refusal(tmp_path / "both", layout="ferplus", num_classes=5)
    assert "no votes" in refusal(tmp_path / "both", layout="sfew", rule="argmax")
    assert "rule 'most'" in refusal(tmp_path / "both", layout="ferplus", rule="most")


def test_a_csv_of_pixels_is_recognised_and_not_listed(tmp_path):
    write_lines(tmp_path / "fer2013.csv", ["emotion,pixels,Usage"])
    write_lines(tmp_path / "icml.csv", ["emotion, Usage, pixels"])
    assert [recognise(path)[0] for path in (tmp_path, tmp_path / "fer2013.csv", tmp_path / "icml.csv")] == ["fer2013"] * 3
    with pytest.raises(DataError):
        listings(tmp_path)


# --- what is left out, and what counts as present ---


def test_rows_without_expression_or_box_are_left_out_and_counted(tmp_path, some_faces):
    images, labels = some_faces
    extra = ["gone/1.jpg,1,1,9,9,,8,-2,-2", "gone/2.jpg,1,1,9,9,,9,-2,-2", "gone/3.jpg,1,1,9,9,,10,-2,-2", "gone/4.jpg,1,1,9,9,,10,-2,-2",
             "gone/5.jpg,1,1,-1,-1,,1,0,0", "gone/6.jpg,1,1,9,0,,1,0,0"]
    WRITERS["affectnet csv"][0](tmp_path, {"train": (images, labels)}, extra)
    found = listings(tmp_path)
    assert list(found) == ["train"] and len(found["train"]) == 16
    wanted = ["1 row(s) labelled none", "1 row(s) labelled uncertain", "2 row(s) labelled no face", "2 row(s) whose box has no area"]
    assert [note.split(" left out")[0] for note in found["train"].notes[:4]] == wanted


def test_older_release_with_lists_in_the_root_images_one_deeper_and_no_header(tmp_path, some_faces):
    path, *_ = make("affectnet csv", tmp_path, some_faces)
    before = [listing.labels for listing in listings(path).values()]
    for name in ("training.csv", "validation.csv"):
        (tmp_path / "Manually_Annotated_file_lists" / name).rename(tmp_path / name)
    (tmp_path / "validation.csv").write_text("".join((tmp_path / "validation.csv").read_text().splitlines(keepends=True)[1:]))
    (tmp_path / "Manually_Annotated").mkdir()
    (tmp_path / "Manually_Annotated_Images").rename(tmp_path / "Manually_Annotated" / "Manually_Annotated_Images")
    found = listings(path)
    assert [listing.labels for listing in found.values()] == before
    assert found["train"].files[0].startswith("Manually_Annotated/Manually_Annotated_Images/")
    assert any("no header" in note for note in found["test"].notes) and not any("no header" in note for note in found["train"].notes)


def test_links_and_empty_files_count_as_present_and_hidden_files_do_not(tmp_path):
    folder = tmp_path / "data" / "happy"
    folder.mkdir(parents=True)
    (folder / "empty.png").touch()
    (folder / "link.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / ".hidden").touch()
    (folder / "Thumbs.db").touch()
    assert listings(tmp_path / "data")["train"].files == ["happy/empty.png", "happy/link.png", "happy/loop.png"]
    write_lines(tmp_path / "data" / "list.csv", ["path,label", "happy/link.png,happy"])
    assert listings(tmp_path / "data" / "list.csv")["train"].files == ["happy/link.png"]


def test_an_image_that_two_rows_name_with_the_same_votes_stays_as_its_owners_have_it(tmp_path, some_faces):
    path, *_ = make("ferplus", tmp_path, some_faces)
    lines = (tmp_path / PLUS).read_text().splitlines()
    write_lines(tmp_path / PLUS, [*lines, lines[0]])
    train = listings(path)["train"]
    assert len(train) == 17 and train.files[0] == train.files[-1] and any("1 row(s) repeat" in note for note in train.notes)


def test_rules_decide_which_images_of_ferplus_are_listed(tmp_path, some_faces):
    images, labels = some_faces
    votes = clear_votes(labels)
    votes[0] = (5, 0, 0, 0, 5, 0, 0, 0, 0, 0)  # a tie of neutral and anger
    votes[1] = (0, 0, 0, 0, 0, 0, 0, 0, 9, 1)  # unknown
    WRITERS["ferplus"][0](tmp_path, {"train": (images, labels)}, {"train": votes})
    strict, largest = listings(tmp_path)["train"], listings(tmp_path, rule="argmax")["train"]
    assert len(strict) == 14 and len(largest) == 15 and largest.labels[0] == Expression.NEUTRAL
    assert "2 of 16 rows left out" in strict.notes[0] and "1 of 16 rows left out" in largest.notes[0]


def test_the_same_face_with_the_same_label_is_kept_once_and_counted(tmp_path, some_faces):
    path, *_ = make("affectnet csv", tmp_path, some_faces)
    before = listings(path)["train"]
    lines = (tmp_path / OLDER).read_text().splitlines()
    write_lines(tmp_path / OLDER, [*lines, lines[3], lines[3], lines[1].replace(",5,3,", ",6,3,")])  # another box is another face
    train = listings(path)["train"]
    assert train.files == [*before.files, before.files[0]] and train.labels == [*before.labels, before.labels[0]]
    assert train.boxes[-1][:2] == (6, 3) and len(train.boxes) == 17
    assert "2 row(s) that list a face again with the same label left out" in train.notes


def test_a_photo_in_both_lists_with_another_box_stays(tmp_path, some_faces):
    path, *_ = make("affectnet csv", tmp_path, some_faces)
    validation = OLDER.replace("training", "validation")
    replace_text(validation, f"test1/{1:032x}.png,5", f"train0/{0:032x}.png,6")(tmp_path)
    assert listings(path)["test"].files[1] == listings(path)["train"].files[0]


def test_labels_as_pandas_writes_them(tmp_path, some_faces):
    path, *_ = make("affectnet csv", tmp_path, some_faces)
    before = listings(path)
    for name in ("training", "validation"):
        file = tmp_path / OLDER.replace("training", name)
        rows = [line.split(",") for line in file.read_text().splitlines()]
        text = [",".join([*row[:6], f"{row[6]}.0", *row[7:]]) for row in rows[1:]]
        write_lines(file, [*([AFFECTNET_HEADER] if name == "training" else []), *text])  # with and without a header
    found = listings(path)
    assert [listing.labels for listing in found.values()] == [listing.labels for listing in before.values()]
    replace_text(OLDER, ".0,0.1", ".5,0.1")(tmp_path)
    with pytest.raises(DataError, match=r"expression '\d\.5' is outside"):
        listings(path)


def test_a_list_of_400_000_rows_is_compared_in_seconds(tmp_path):
    folder = tmp_path / "Manually_Annotated_Images" / "1"
    folder.mkdir(parents=True)
    (folder / "a.jpg").touch()
    rows = (f"1/a.jpg,{i % 1000},{i // 1000},9,9,,{i % 8},0,0" for i in range(400_000))
    write_lines(tmp_path / OLDER, [AFFECTNET_HEADER, *rows])
    start = time.process_time()
    assert len(listings(tmp_path)["train"]) == 400_000 and time.process_time() - start < 10


def test_missing_files_are_named_with_their_lines(tmp_path, some_faces):
    path, *_ = make("csv", tmp_path, some_faces)

    def refusal():
        with pytest.raises(DataError) as caught:
            listings(path)
        assert len(str(caught.value)) < 400
        return str(caught.value)

    gone = [tmp_path / f"shots/train/{i:05}.png" for i in range(12)]
    gone[1].unlink()
    assert refusal() == f"{tmp_path.name}/faces.csv line 3: shots/train/00001.png is missing (1 of 48 images); add it or remove the line"
    gone[4].unlink()
    assert refusal() == (f"{tmp_path.name}/faces.csv: 2 of 48 images are missing: line 3: shots/train/00001.png, line 6: shots/train/00004.png; "
                         "add them or remove the lines")
    for file in gone:
        file.unlink(missing_ok=True)
    said = refusal()
    assert said.count(": shots/train/") in range(7, 11) and f"and {12 - said.count(': shots/train/')} more; add them" in said and ": 12 of 48" in said
    (tmp_path / "short.csv").write_text("path,label\n" + "".join(f"{i}.png,sad\n" for i in range(12)))
    with pytest.raises(DataError, match=r"12 of 12 images are missing: line 2: 0.png, .*line 11: 9.png and 2 more; add"):
        listings(tmp_path / "short.csv")


def test_capitals_and_blanks_in_the_names_of_columns_do_not_count(tmp_path, some_faces):
    path, *_ = make("csv", tmp_path, some_faces)
    before = listings(path)
    replace_text("faces.csv", "path,label,split,identity", "Path, LABEL,Split ,Identity")(tmp_path)
    assert recognise(path)[0] == "csv"
    for split, listing in listings(path).items():
        assert (listing.files, listing.labels, listing.identity) == (before[split].files, before[split].labels, before[split].identity)


@pytest.mark.parametrize("aligned", ["", "_Aligned_Faces"])
def test_nearly_sfew_is_said(aligned, tmp_path, some_faces):
    make("sfew", tmp_path, some_faces)
    for file in (tmp_path / "Val" / "Fear").iterdir():
        file.unlink()
    (tmp_path / "Val" / "Fear").rmdir()
    for folder in ("Train", "Val"):
        (tmp_path / folder).rename(tmp_path / (folder + aligned))
    hint = f'nearly SFEW: Val{aligned} lacks Fear; use layout="sfew"'
    if aligned:
        with pytest.raises(DataError, match="no known layout") as caught:
            recognise(tmp_path)
        assert hint in str(caught.value)
    else:
        name, reason = recognise(tmp_path)
        assert name == "class folders" and hint in reason and list(listings(tmp_path)) == ["train", "valid"]
    found = listings(tmp_path, "sfew")
    assert list(found) == ["train", "test"] and f"Val{aligned} lacks Fear" in found["test"].notes
    assert found["train"].classes == found["test"].classes and found["test"].counts[Expression.FEAR] == 0 < found["train"].counts[Expression.FEAR]
    (tmp_path / f"Train{aligned}" / "Sad").rename(tmp_path / "Sad")
    with pytest.raises(DataError, match="lacks Sad and Val.* lacks Fear, and without images"):
        listings(tmp_path, "sfew")


# --- the published counts, from the votes that travel with the tests ---

STRICT = {"Training": (8740, 7287, 3149, 3014, 2100, 119, 532, 119), "PublicTest": (1182, 865, 415, 351, 287, 24, 62, 13)}
USABLE = {"strict": (25_060, 3_199), "argmax": (28_389, 3_553)}


@pytest.fixture(scope="module")
def ferplus_votes():
    with np.load(VOTES) as file:
        return {name: file[name] for name in ("votes", "usage", "named")}


def test_the_votes_are_small_and_licensed():
    assert VOTES.stat().st_size <= 400 * 1024 and "MIT License" in VOTES.with_name("LICENSE-votes.txt").read_text()


@pytest.mark.parametrize("rule", VOTE_RULES)
def test_the_rules_give_the_known_counts(rule, ferplus_votes):
    labels = majority(ferplus_votes["votes"], rule)
    assert labels.dtype == np.int64 and set(labels.tolist()) <= {-1, *range(8)}
    for usage, name in enumerate(STRICT):
        own = (ferplus_votes["usage"] == usage) & ferplus_votes["named"]
        assert (labels[own] >= 0).sum() == USABLE[rule][usage]
        if rule == "strict":
            assert tuple((labels[own] == FERPLUS[column]).sum() for column in range(8)) == STRICT[name]


def test_rows_without_the_name_of_an_image_have_no_label_under_either_rule(ferplus_votes):
    unnamed = ~ferplus_votes["named"]
    assert [(unnamed & (ferplus_votes["usage"] == usage)).sum() for usage in (0, 1)] == [148, 10]
    assert all((majority(ferplus_votes["votes"][unnamed], rule) == -1).all() for rule in VOTE_RULES)


def test_the_two_rules_never_give_one_image_two_labels(ferplus_votes):
    strict, largest = (majority(ferplus_votes["votes"], rule) for rule in ("strict", "argmax"))
    assert (strict[strict >= 0] == largest[strict >= 0]).all()


@pytest.mark.parametrize("votes", [np.zeros((2, 8)), np.zeros(10), -np.ones((1, 10))], ids=("eight columns", "one row", "negative"))
def test_votes_of_another_shape_are_refused(votes):
    with pytest.raises(DataError, match="votes: shape"):
        majority(votes)
