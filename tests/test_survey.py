"""Manifests of files with any name; differences in either direction; near-copies against a slow version; and what a survey says of bad files."""

import hashlib
import os
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from layout_writers import WRITERS, save, write_lines
from PIL import Image

from cucn_nb import faces
from cucn_nb.datasets import BadFiles, DataError, read
from cucn_nb.images import REFUSED
from cucn_nb.layouts import majority
from cucn_nb.survey import NEAR, PUBLISHED, Entry, differences, near_copies, read_manifest, survey, thumbnails, verdict, write_manifest

NAMES = ["plain.png", "a, b.png", 'a "b".png', "a\nb.png", "a\rb.png", "a\r\nb.png", "  .png", "'=1+1.png", "\u00e4\u2028\U0001f600.png",
         "a;b\tc.png", "\ufeffa.png", os.fsdecode(b"\xff\xfe\x80.png"), "SOH\x01.png", '"', "#.png"]


def some(k, **fields):
    given = {"split": "train", "path": f"happy/{k}.png", "label": "happiness", "verdict": "rgb", "width": 16, "height": 12, "sha256": f"{k:064x}"}
    return Entry(**given | fields)


def album(root, images, **places):
    """Rendered test faces in files: {split/class/name with _ for /: number of the face}."""
    for name, k in places.items():
        save(root / f"{name.replace('_', '/')}.png", images[k])
    return root


@pytest.fixture(scope="module")
def images():
    return faces.load("test").images[:16, ::2, ::2]


# --- manifests ---

def test_any_name_comes_back(tmp_path):
    entries = [some(k, path=f"happy/{name}") for k, name in enumerate(NAMES)] + [some(99, verdict="empty", width=0, height=0, sha256="")]
    write_manifest(entries, tmp_path / "m.csv")
    assert read_manifest(tmp_path / "m.csv") == entries
    assert (tmp_path / "m.csv").read_bytes().count(b"\xff\xfe\x80") == 1 and [path.name for path in tmp_path.iterdir()] == ["m.csv"]


@pytest.mark.skipif(os.name == "nt", reason="Windows allows few of these names")
def test_files_of_any_name_are_surveyed_and_read(tmp_path):
    """From the disk to the manifest and back; the report stays one line a finding."""
    for k, name in enumerate(NAMES):
        path = tmp_path / "data" / ("train" if k % 3 else "test") / "happy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = faces.load("test").images[k, ::4, ::4]
        Image.fromarray(pixels).save(path, "PNG")
    (tmp_path / "data" / "train" / "happy" / "x\ny.png").touch()
    found = survey(tmp_path / "data")
    assert {entry.path.split("/")[2] for entry in found.manifest} == {*NAMES, "x\ny.png"}
    assert "\n  train/happy/x\\ny.png: empty: holds no bytes" in str(found) and all(line.isprintable() for line in str(found).split("\n"))
    write_manifest(found.manifest, tmp_path / "m.csv")
    assert tuple(read_manifest(tmp_path / "m.csv")) == found.manifest and differences(found.manifest, read_manifest(tmp_path / "m.csv")) == []
    bad = [entry.verdict for entry in found.manifest if entry.verdict in REFUSED]
    assert bad == ["empty"]
    assert sum(found.listed["train"]) - sum(found.given["train"]) == len(bad)
    data = read(tmp_path / "data", quarantine=tmp_path / "out.csv")
    assert data.counts.tolist() == list(found.given["train"])


@pytest.mark.parametrize("content", [
    b"", b"split,path\n", b"split,path,label,verdict,width,height,sha256\ntrain,a,happiness,rgb,16\n",
    b"split,path,label,verdict,width,height,sha256\ntrain,a,happiness,rgb,sixteen,16,aa\n",
    b"split,path,label,verdict,width,height,sha256\ntrain,a,happiness,rgb," + b"9" * 5000 + b",16,aa\n",
    b'split,path,label,verdict,width,height,sha256\ntrain,a,happiness,rgb,16,16,"aa\ntrain,b,happiness,rgb,16,16,bb\n',
    b"split,path,label,verdict,width,height,sha256\ntrain,a,happiness,rgb,-1,16,aa\n", b"\x89PNG\r\n\x1a\n\0\0"])
def test_no_manifests(tmp_path, content):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_manifest(tmp_path / "m.csv")
    assert str(tmp_path / "m.csv") in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 600


@pytest.mark.parametrize("place", ["nowhere/m.csv", "folder"])
def test_where_none_can_be_written(tmp_path, place):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_manifest([some(0)], tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] and not list((tmp_path / "folder").iterdir())


# --- differences ---

def test_differences_are_the_same_from_either_side():
    """A hundred pairs of manifests: none exactly where both hold the same, and "here" and "there" change places with them."""
    draw, told = random.Random(0), 0
    labels, splits = ("fear", "anger"), ("train", "test")
    for _ in range(100):
        own = [some(draw.randrange(30), path=f"{k}.png", label=draw.choice(labels), split=draw.choice(splits)) for k in range(12)]
        folder = draw.choice(("", "x/"))  # renamed or not
        other = [entry._replace(path=f"{folder}{entry.path}") for entry in draw.sample(own, draw.choice((12, 12, 9)))]
        for _ in range(draw.choice((0, 1, 3))):
            k = draw.randrange(len(other))
            other[k] = other[k]._replace(**draw.choice([{"label": "neutral"}, {"split": "valid"}, {"sha256": "f" * 64}]))
        one, two = differences(own, other), differences(other, own)
        held = [Counter((entry.split, entry.label, entry.sha256) for entry in entries) for entries in (own, other)]
        assert (one == []) == (two == []) == (held[0] == held[1])
        told += bool(one)

        def counts(lines, swap):
            words = {"here": "there", "there": "here"} if swap else {}
            heads = [line.partition(": ") for line in lines if not line.startswith(" ")]
            return sorted((" ".join(words.get(word, word) for word in head.split()), total(tail)) for head, _, tail in heads)

        assert counts(one, False) == counts(two, True)
        for head, lines in kinds(one).items():
            assert len(lines) == min(total(head.partition(": ")[2]), 10)
    assert 40 < told < 100


def total(words):
    """1,003 of "1 test, 1,002 train"."""
    return sum(int(word.replace(",", "")) for word in words.split() if word[0].isdecimal())


def kinds(lines):
    """{head: its examples}."""
    found = {}
    for line in lines:
        found.setdefault(line, []) if not line.startswith(" ") else found[list(found)[-1]].append(line)
    return found


def test_differences_name_the_copy_that_is_lost():
    """Two files with equal bytes: the example is the one that is missing, not one that stands on both sides."""
    a, b = some(7, path="a.png", label="fear", split="test"), some(7, path="b.png", label="fear", split="test")
    assert differences([a, b], [b]) == ["only here: 1 test", "  a.png"] and differences([b], [b, a]) == ["only there: 1 test", "  a.png"]
    moved = differences([a, b], [a._replace(label="anger"), b])
    assert moved == ["under another label or in another split: 1 test", "  a.png: test fear here, test anger there"]
    both = differences([a, b], [b._replace(label="anger")])
    assert both == ["under another label or in another split: 1 test", "  b.png: test fear here, test anger there", "only here: 1 test", "  a.png"]
    swapped = [some(1, path="b.png"), some(2, path="a.png")]
    assert differences([some(1, path="a.png"), some(2, path="b.png")], swapped) == []  # renamed, nothing more


def test_an_image_saved_anew_has_changed():
    own = [some(k) for k in range(4)] + [some(9, split="test")]
    other = [some(0), some(1, sha256="e" * 64), some(2, sha256="f" * 64, label="fear"), some(3), some(9, split="test", sha256="d" * 64)]
    assert differences(own, other) == ["other content under the same path: 1 test, 2 train", "  changed: happy/9.png", "  changed: happy/1.png",
                                       "  changed: happy/2.png, happiness here, fear there"]
    assert differences([some(1)], [some(2, path="happy/1.png", split="test")])[0] == "only here: 1 train"  # in another split it is another image
    renamed = differences([some(1, path="a.png"), some(1, path="b.png")], [some(1, path="c.png"), some(2, path="a.png")])
    assert renamed == ["other content under the same path: 1 train", "  changed: a.png"]


def test_ten_examples_of_each_kind():
    own = [some(k) for k in range(40)]
    other = [some(k, label="fear") for k in range(12)] + [some(k, sha256=f"f{k:063x}") for k in range(12, 22)]
    other += [some(k, path=f"{k}.png") for k in range(50, 63)]
    found = kinds(differences(own, other))
    assert [total(head.partition(": ")[2]) for head in found] == [12, 10, 18, 13]
    assert [(len(lines), lines[-1]) for lines in found.values()] == [
        (11, "  and 2 more"), (10, "  changed: happy/21.png"), (11, "  and 8 more"), (11, "  and 3 more")]
    assert differences([some(0, path="a\nb.png")], [])[1] == "  a\\nb.png"


def test_large_manifests_are_compared_soon():
    """As many entries as AffectNet's are no matter of minutes: the work does not grow with their square."""
    own = [some(k) for k in range(30_000)]
    other = [entry._replace(label="fear") if k % 3 else entry._replace(sha256=f"f{k:063x}") for k, entry in enumerate(own)]
    start = time.process_time()
    assert [total(head.partition(": ")[2]) for head in kinds(differences(own, other))] == [20_000, 10_000]
    assert time.process_time() - start < 20


# --- boxes ---

def test_another_box_is_another_image(tmp_path, images):
    """The manifest and its digest are over the files and the boxes that are cut out; survey and reader agree."""
    WRITERS["affectnet csv"][0](tmp_path, {split: (images[:8], np.arange(8)) for split in ("train", "test")})
    table = tmp_path / "Manually_Annotated_file_lists" / "training.csv"
    before = survey(tmp_path)
    assert before.digest("train") == read(tmp_path).manifest and before.digest("test") == read(tmp_path, "test").manifest
    lines = table.read_text().splitlines()
    fields = lines[3].split(",")
    lines[3] = ",".join([fields[0], str(int(fields[1]) + 1), *fields[2:]])
    write_lines(table, lines)
    after = survey(tmp_path)
    path = f"Manually_Annotated_Images/{fields[0]}"
    assert differences(before.manifest, after.manifest) == ["other content under the same path: 1 train", f"  changed: {path}"]
    assert after.digest("train") == read(tmp_path).manifest != before.digest("train") and after.digest("test") == before.digest("test")


def test_without_boxes_the_hash_is_the_files(tmp_path, images):
    found = survey(album(tmp_path, images, train_sad_a=0, train_sad_b=1))
    for entry in found.manifest:
        assert entry.sha256 == hashlib.sha256((tmp_path / entry.path).read_bytes()).hexdigest()


# --- notes and verdicts ---

def test_notes_name_their_split(tmp_path, images):
    """An image without an expression in each of two splits is two images."""
    WRITERS["affectnet npy"][0](tmp_path, {split: (images[:10], np.arange(10) % 8) for split in ("train", "test")})
    for folder, name in (("train_set", "8"), ("val_set", "9")):
        np.save(tmp_path / folder / "annotations" / f"{name}_exp.npy", np.array(8))
    (tmp_path / "faces.csv").write_text("a\n")
    notes = survey(tmp_path).notes
    assert "train: 1 image(s) labelled none left out" in notes and "test: 1 image(s) labelled none left out" in notes
    assert notes.count("faces.csv not read") == 1 == sum("faces.csv" in note for note in notes)
    assert sum("val_set is read as test" in note for note in notes) == 1


def test_ferplus_by_the_largest_vote_is_judged_by_classes():
    shipped = np.load(Path(__file__).parent / "data" / "ferplus_votes.npz")
    labels = [majority(shipped["votes"][(shipped["usage"] == usage) & shipped["named"]], "argmax") for usage in (0, 1)]
    counts = {split: tuple(np.bincount(own[own >= 0], minlength=8).tolist()) for split, own in zip(("train", "valid"), labels, strict=True)}
    assert counts == PUBLISHED["ferplus argmax"]
    full = counts | {"test": (3546, 0, 0, 0, 0, 0, 0, 0)}  # of the test only the total is known
    assert verdict("ferplus argmax", full) == "complete: equals the published counts, of test the total"
    seven = {split: own[:7] for split, own in counts.items()} | {"test": (3500, 0, 0, 0, 0, 0, 0)}
    assert verdict("ferplus argmax", seven) == (
        "complete: equals the published counts; of test only the total with contempt is known, 3,546, and 3,500 are here")
    said = verdict("ferplus argmax", counts)
    assert said.startswith("a subset by its counts: 28,389 of 28,389 train") and said.endswith("0 of 3,546 test images")
    turned = full | {"train": counts["train"][::-1]}
    assert verdict("ferplus argmax", turned).startswith("not the published counts: train fear 10,309, published 652")
    assert verdict("ferplus argmax", full | {"test": (3547,) + (0,) * 7}) == "not the published counts: test 3,547, published 3,546"
    assert verdict("sfew", {"train": (900,), "test": (436,)}) == "a subset by its totals: 900 of 958 train images and 436 of 436 test images"
    assert verdict("sfew", {"train": (959,), "test": (436,)}) == "not the published totals: train 959, published 958"


def test_a_survey_by_the_largest_vote_shows_what_is_published(tmp_path, images):
    WRITERS["ferplus"][0](tmp_path, {split: (images[:16], np.arange(16) % 8) for split in ("train", "valid", "test")})
    for classes in (None, 7):
        found = survey(tmp_path, num_classes=classes, rule="argmax")
        assert found.verdict.startswith(f"a subset by its counts: {16 if classes is None else 14} of {28389 if classes is None else 28224:,} train")
        assert "10,309" in str(found) and "8,740" not in str(found)


def test_people_in_two_splits(tmp_path, images):
    who = {"train": ["ann", "bob", "cy", "bob"], "valid": ["dora"], "test": ["bob", "eve", "ann"]}
    rows = [(f"{split}/{i}.png", "sad", split, name) for split, names in who.items() for i, name in enumerate(names)]
    for k, (path, *_) in enumerate(rows):
        save(tmp_path / path, images[k])

    def people(rows, header="path,label,split,identity"):
        write_lines(tmp_path / "list.csv", [header, *map(",".join, rows)])
        return [note for note in survey(tmp_path / "list.csv").notes if "stand" in note]

    assert people(rows) == ["2 people stand in train and test, such as ann"]
    assert people([*rows[:4], (*rows[4][:3], "bob"), *rows[5:]]) == [
        "1 person stands in train and valid, such as bob", "2 people stand in train and test, such as ann",
        "1 person stands in valid and test, such as bob"]
    assert people([row for row in rows if row[2] != "test"]) == []
    assert people([row[:3] for row in rows], "path,label,split") == []


def test_twins_under_two_labels(tmp_path, images):
    found = survey(album(tmp_path, images, train_sad_a=0, train_sad_b=0, train_angry_c=1, test_sad_d=5, test_sad_e=6, test_angry_f=7))
    line = "the same pixels twice in train: 1 image(s), such as train/sad/a.png (sadness) and train/sad/b.png (sadness)"
    assert line in str(found).splitlines()  # one label, no contradiction
    found = survey(album(tmp_path, images, train_angry_g=0, train_angry_h=1))
    (line,) = (line for line in str(found).splitlines() if "twice" in line)
    assert line.startswith("the same pixels twice in train: 3 image(s), such as train/") and line.endswith("; labels that contradict each other: 1")
    first, second = found.twins["train"][0]
    assert "train/sad/a.png (sadness) and train/angry/g.png (anger)" in line and len(found.twins["train"]) == 3
    assert first.sha256 == second.sha256 and first.path != second.path


def test_why_a_file_is_refused(tmp_path, images):
    """The survey's words are those of the reader."""
    album(tmp_path, images, train_sad_a=0, train_sad_b=1)
    (tmp_path / "train" / "sad" / "page.png").write_text("<html>404</html>")
    Image.fromarray(images[2]).save(tmp_path / "train" / "sad" / "named.jpg", "PNG")
    Image.new("F", (20, 20)).save(tmp_path / "train" / "sad" / "mode.tif")
    said = str(survey(tmp_path))
    for name, detail in (("page.png", "a web page"), ("named.jpg", "PNG data"), ("mode.tif", "mode F")):
        (line,) = (line for line in said.splitlines() if name in line)
        assert line.startswith(f"  train/sad/{name}: ") and line.endswith(f"({detail})")
    with pytest.raises(BadFiles) as error:
        read(tmp_path)
    lines = [line for line in said.splitlines() if line.startswith("  train/sad/")]
    assert lines == [f"  {path}: {found.kind}: {found.words}" for _, path, _, found in error.value.bad] and len(lines) == 3


# --- near-copies ---

def slow(images, others, least):
    """Pearson's correlation in float64, pair by pair, of images of 16 x 16 pixels."""
    found = {}
    for i, a in enumerate(images):
        scores = []
        for b in others:
            x, y = a.astype(np.float64).mean(0).ravel(), b.astype(np.float64).mean(0).ravel()
            scores.append(0.0 if x.std() < 1e-9 or y.std() < 1e-9 else float(np.corrcoef(x, y)[0, 1]))
        if scores and max(scores) >= least:
            found[i] = (int(np.argmax(scores)), max(scores))
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_near_copies_against_a_slow_version(seed, channels):
    draw = np.random.default_rng(seed)
    others = draw.integers(0, 256, (50, channels, 16, 16), dtype=np.uint8)
    images = others[draw.integers(0, 50, 60)].astype(np.float64) + draw.normal(0, draw.uniform(5, 60, (60, 1, 1, 1)), (60, channels, 16, 16))
    images = images.clip(0, 255).astype(np.uint8)
    images[7], images[8], others[3] = 128, 255 - others[5], 0  # without contrast; a negative
    expected = slow(images, others, NEAR - 1e-4)
    found = near_copies(thumbnails(images), thumbnails(torch.from_numpy(others)))
    sure = {i for i, (_, score) in expected.items() if score >= NEAR + 1e-4}
    assert sure <= {i for i, *_ in found} <= set(expected) and 5 < len(found) < 60 and not {7, 8} & set(expected)
    for i, j, score in found:
        assert j == expected[i][0] and abs(score - expected[i][1]) < 1e-4 and type(score) is float


def test_near_copies_over_the_border_of_a_piece():
    """Images are compared 2,048 at a time."""
    draw = torch.Generator().manual_seed(0)
    images = thumbnails(torch.randint(0, 256, (4100, 1, 16, 16), generator=draw).byte())
    picked = [0, 2047, 2048, 4095, 4096, 4099]
    assert [(i, j) for i, j, _ in near_copies(images, images[picked])] == list(zip(picked, range(6), strict=True))
    assert near_copies(images, images[:0]) == [] and near_copies(images[:0], images) == []


def test_a_survey_finds_near_copies_across_splits_and_twins_within(tmp_path):
    images = faces.load("test").images[:8, ::2, ::2]
    for split, k in (("train", 0), ("train", 1), ("train", 2), ("test", 3)):
        path = tmp_path / "data" / split / "sad" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[k]).save(path)
    Image.fromarray(images[3]).save(tmp_path / "data" / "train" / "sad" / "near.jpg", quality=60)
    Image.fromarray(images[1]).save(tmp_path / "data" / "train" / "sad" / "twin.bmp")
    found = survey(tmp_path / "data")
    assert [pair[:2] for pair in found.near] == [("train/sad/near.jpg", "test/sad/3.png")] and found.near[0][2] >= NEAR
    assert found.copies == () and found.given == found.listed
    assert {split: len(pairs) for split, pairs in found.twins.items()} == {"train": 1, "test": 0}
    Image.fromarray(images[3]).save(tmp_path / "data" / "train" / "sad" / "copy.bmp")
    found = survey(tmp_path / "data")
    assert found.copies == (("train/sad/copy.bmp", "test/sad/3.png"),) and len(found.near) == 1
    assert found.given["train"] == (5,) and found.listed["train"] == (6,)


@pytest.mark.parametrize(("one", "other"), [("train", "valid"), ("train", "test"), ("valid", "test")])
def test_copies_are_found_between_any_two_splits(tmp_path, images, one, other):
    """What belongs to the later split stays, the earlier one loses its image; survey and reader agree."""
    album(tmp_path, images, train_sad_0=0, train_sad_1=1, valid_sad_2=2, valid_sad_3=3, test_sad_4=4, test_sad_5=5)
    first = {"train": 0, "valid": 2, "test": 4}
    Image.fromarray(images[first[one]]).save(tmp_path / other / "sad" / "copy.bmp")
    found = survey(tmp_path)
    assert found.copies == ((f"{one}/sad/{first[one]}.png", f"{other}/sad/copy.bmp"),) and found.near == ()
    assert {split: sum(found.listed[split]) - sum(found.given[split]) for split in found.listed} == {"train": 0, "valid": 0, "test": 0} | {one: 1}
    for split in found.listed:
        assert tuple(read(tmp_path, split, quarantine=tmp_path.parent / "out.csv").counts.tolist()) == found.given[split]
    Image.fromarray(images[first[one]]).save(tmp_path / other / "sad" / "copy.jpg", quality=60)
    (tmp_path / other / "sad" / "copy.bmp").unlink()
    assert [pair[:2] for pair in survey(tmp_path).near] == [(f"{one}/sad/{first[one]}.png", f"{other}/sad/copy.jpg")]
