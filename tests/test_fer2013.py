"""FER2013 at full size, where it is present: set CUCN_FER2013 to the folder that holds fer2013.csv and fer2013new.csv."""
import json
import os
from pathlib import Path

import pytest
import torch

from cucn_nb.datasets import FaceDataset, read
from cucn_nb.protocols import stratified_split
from cucn_nb.survey import Survey, near_copies, survey, thumbnails

FOLDER = os.environ.get("CUCN_FER2013")
RECORD = Path(__file__).resolve().parent.parent / "results" / "fer2013_near_copies.json"
pytestmark = pytest.mark.skipif(not FOLDER, reason="set CUCN_FER2013 to the folder with fer2013.csv and fer2013new.csv")


@pytest.fixture(scope="module")
def train() -> FaceDataset:
    return read(Path(FOLDER or ""), "train")


@pytest.fixture(scope="module")
def test() -> FaceDataset:
    return read(Path(FOLDER or ""), "test")


def test_every_row_is_read_or_counted(train: FaceDataset, test: FaceDataset) -> None:
    for data, rows in ((train, 28709), (test, 3589)):  # the sizes of Training and PublicTest as released
        assert len(data) + sum(int(note.split()[0]) for note in data.notes) == rows
        assert data.images.shape[1:] == (1, 48, 48) and data.images.flatten(1).any(1).all()


def test_agreement_of_label_and_votes(train: FaceDataset) -> None:
    """With the votes joined rightly about 63 % agree with the label; joined one row off it is 18 %."""
    assert train.votes is not None
    agree = (train.votes.argmax(1) == train.labels).float().mean().item()
    shifted = (train.votes.roll(1, 0).argmax(1) == train.labels).float().mean().item()
    assert .60 < agree < .66 and shifted < .22
    happy = train.labels == train.classes.index("happiness")
    assert (train.votes[happy].argmax(1) == train.labels[happy]).float().mean() > .9


def test_votes_are_of_about_ten_people(train: FaceDataset, test: FaceDataset) -> None:
    for data in (train, test):
        assert data.votes is not None and (data.votes[:, :8].sum(1) >= 1).all()
        assert (data.votes.sum(1) == 10).float().mean() > .9


def test_nothing_of_the_test_is_in_train(train: FaceDataset, test: FaceDataset) -> None:
    def keys(data: FaceDataset) -> set[bytes]:
        return {image.numpy().tobytes() for image in torch.as_tensor(data.images)}

    part, valid = stratified_split(train, .1, 0)
    assert not keys(train) & keys(test) and not keys(part) & keys(valid)
    assert [abs(n - round(.1 * whole)) <= 1 for n, whole in zip(valid.counts.tolist(), train.counts.tolist(), strict=True)] == [True] * 7


def test_counts(train: FaceDataset, test: FaceDataset) -> None:
    """Training and PublicTest as released have 161 rows less if their pixels are black; the counts below are without those."""
    if not train.notes[0].startswith("151 "):
        pytest.skip("this copy of the csv has other black rows")
    assert [note.split()[0] for note in train.notes] == ["151", "2", "340"] and test.notes[0].split()[0] == "10"
    assert train.counts.tolist() == [3024, 4026, 413, 7156, 4766, 3922, 4909]
    assert test.counts.tolist() == [414, 496, 56, 891, 652, 466, 604]


@pytest.fixture(scope="module")
def found() -> Survey:
    return survey(Path(FOLDER or ""))


def test_survey(found: Survey, train: FaceDataset, test: FaceDataset) -> None:
    """All rows are counted, those left out too; a copy whose lost rows stand in as black ones is told from the published csv."""
    assert {split: sum(counts) for split, counts in found.listed.items()} == {"train": 28709, "test": 3589}
    assert {split: list(counts) for split, counts in found.given.items()} == {"train": train.counts.tolist(), "test": test.counts.tolist()}
    stand_in = train.notes[0].startswith("151 ")
    assert found.verdict.startswith("not the published counts: train anger 4,120, published 3,995" if stand_in else "complete")
    assert found.copies == () and found.digest("train") == train.manifest and found.digest("test") == test.manifest


def test_near_copies_are_those_of_the_record(found: Survey, train: FaceDataset, test: FaceDataset) -> None:
    record = json.loads(RECORD.read_text("utf-8"))
    if (train.fingerprint(), test.fingerprint()) != (record["fingerprints"]["train"], record["fingerprints"]["test"]):
        pytest.skip("this copy of the csv is not the one of the record")
    of_test = near_copies(thumbnails(test.images), thumbnails(train.images), 0.95)
    counts = {least: sum(score >= float(least) for *_, score in of_test) for least in record["test images with a near-copy in train"]}
    assert counts == record["test images with a near-copy in train"] and counts["0.96"] == 258
    pairs = {(train.sources[j], test.sources[i]) for i, j, score in of_test if score >= 0.99}
    assert pairs and {own for own, _, score in found.near if score >= 0.99} >= {own for own, _ in pairs}  # seen from train: each has its partner too
