"""Splits, noise and imbalance: what must hold for any data, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cucn_nb.datasets import DataError, FaceDataset
from cucn_nb.protocols import (
    confusion_noise,
    human_confusion,
    imbalance,
    imbalance_indices,
    listed_noise,
    stratified_split,
    symmetric_noise,
    together,
    valid_indices,
)

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")


def data_of(counts, seed=0, **fields):
    """Small numbered images, so many of each class, in random order, named as RAF-DB names them."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    images = torch.arange(4 * len(labels)).remainder(251).byte().view(-1, 1, 2, 2)
    sources = [f"Image/aligned/train_{k + 1:05}_aligned.jpg" for k in range(len(labels))]
    given = {"images": images, "labels": labels, "classes": CLASSES[:len(counts)], "name": "raf-db", "split": "train", "sources": sources}
    return FaceDataset(**given | fields)


@pytest.fixture(scope="module")
def data():
    return data_of([60, 12, 30, 200, 90, 28, 110])


def confusion_of(classes, seed=0):
    rows = torch.rand(classes, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows.fill_diagonal_(0)
    return rows / rows.sum(1, keepdim=True)


def written(path, data, labels, first=1, aligned=False):
    """A list of labels in one of the two published forms."""
    names = [source.rpartition("/")[2] for source in data.sources]
    lines = [f"/some/where/{name} {label + first}" if aligned else f"{name.replace('_aligned', '')} {label + first}"
             for name, label in zip(names, labels.tolist(), strict=True)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def noises(tmp_path):
    """Every kind of noise as a function of data and seed."""
    def listed(data, seed):
        return listed_noise(data, written(tmp_path / f"{seed}.txt", data, symmetric_noise(replace(data, split="train"), 0.4, seed).labels))

    return {"symmetric": lambda data, seed: symmetric_noise(data, 0.4, seed),
            "confusion": lambda data, seed: confusion_noise(data, 0.4, confusion_of(data.num_classes), seed), "listed": listed}


@pytest.mark.parametrize("kind", ["symmetric", "confusion", "listed"])
def test_noise_is_seeded_counted_and_reversible(data, tmp_path, kind):
    noise = noises(tmp_path)[kind]
    noisy = noise(data, 0)
    clean = torch.from_numpy(noisy.attributes["clean_label"])
    changed = int((noisy.labels != clean).sum())
    assert torch.equal(noise(data, 0).labels, noisy.labels) and not torch.equal(noise(data, 1).labels, noisy.labels)
    assert torch.equal(clean, data.labels) and replace(noisy, labels=clean).fingerprint() == data.fingerprint()
    assert 0.25 < changed / len(data) < 0.55 and noisy.notes[-1].startswith(f"{changed} of 530 labels ({changed / 5.3:.2f} %) changed")
    assert torch.equal(noisy.images, data.images) and noisy.sources == data.sources and noisy.split == "train"
    with pytest.raises(DataError, match="not for those of test, which judge"):
        noise(replace(data, split="test"), 0)
    with pytest.raises(DataError, match="not for those of valid"):
        noise(replace(data, split="valid"), 0)


@pytest.mark.parametrize("kind", ["symmetric", "confusion", "listed"])
@pytest.mark.parametrize("before", ["symmetric", "confusion", "listed"])
def test_a_second_noise_keeps_the_clean_labels(data, tmp_path, before, kind):
    kinds = noises(tmp_path)
    first = kinds[before](replace(data, attributes={"age": np.arange(len(data))}), 0)
    second = kinds[kind](first, 1)
    wrong = int((second.labels != data.labels).sum())
    assert second.attributes["clean_label"].tolist() == data.labels.tolist() and second.attributes["age"].tolist() == list(range(len(data)))
    assert second.notes[-1].endswith(f"{wrong} of 530 labels ({wrong / 5.3:.2f} %) now differ from the clean ones")


def test_the_streams_of_noise_stay_what_they_were():
    noisy = symmetric_noise(data_of([1290, 281, 717, 4772, 1982, 705, 2524]), 0.3, seed=0)
    changed = (noisy.labels.numpy() != noisy.attributes["clean_label"]).nonzero()[0]
    generator = np.random.Generator(np.random.PCG64([0, *b"noise"]))
    assert np.array_equal(changed, (generator.random(12271) < 0.3).nonzero()[0])
    steps = generator.integers(1, 7, 12271)
    assert np.array_equal(noisy.labels.numpy()[changed], ((noisy.attributes["clean_label"] + steps) % 7)[changed])


def test_both_drawn_noises_change_the_same_images(data):
    a, b = symmetric_noise(data, 0.3, 5), confusion_noise(data, 0.3, confusion_of(7), 5)
    assert torch.equal(a.labels != data.labels, b.labels != data.labels) and not torch.equal(a.labels, b.labels)


def test_confusion_noise_follows_its_rows_and_never_an_empty_one():
    counts = [4000, 4000, 4000]
    rows = torch.tensor([[0, 1, 0], [0.25, 0, 0.75], [1, 0, 0]])
    noisy = confusion_noise(data_of(counts), 0.5, rows, seed=3)
    clean = torch.from_numpy(noisy.attributes["clean_label"])
    for label in range(3):
        went = noisy.labels[(clean == label) & (noisy.labels != label)]
        shares = torch.bincount(went, minlength=3) / len(went)
        assert ((shares - rows[label]).abs() <= 4 * (rows[label] * (1 - rows[label]) / len(went)).sqrt()).all()


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2, float("nan")])
def test_a_rate_is_a_probability_below_one(data, rate):
    with pytest.raises(ValueError, match="rate .* at least 0 and below 1"):
        symmetric_noise(data, rate)
    with pytest.raises(ValueError, match="rate .* at least 0 and below 1"):
        confusion_noise(data, rate, confusion_of(7))


def test_one_class_cannot_be_noisy():
    with pytest.raises(DataError, match="only one class, surprise"):
        symmetric_noise(data_of([5]), 0.1)


@pytest.mark.parametrize(("change", "message"), [
    (lambda k: k[:, :6], r"shape \[7, 6\], not \[7, 7\]"), (lambda k: k + 0.1 * torch.eye(7), "0 on the diagonal"), (lambda k: 2 * k, "sum to 1"),
    (lambda k: k * torch.tensor([[float("nan")]] + [[1]] * 6), "0 or more"), (lambda k: k - 0.5 * (k == k.max()), "0 or more")])
def test_a_confusion_is_checked(data, change, message):
    with pytest.raises(ValueError, match=message):
        confusion_noise(data, 0.1, change(confusion_of(7)))


@pytest.mark.parametrize("seed", range(5))
def test_human_confusion_against_a_slow_version(seed):
    draw = np.random.default_rng(seed)
    names = ("contempt", *draw.permutation(CLASSES[:4]).tolist(), "unknown")  # other columns and another order
    votes = draw.integers(0, 4, (200, 6)).astype(float)
    votes[0, 1:5] = 0  # all for contempt and unknown: says nothing
    data = data_of([80, 20, 60, 40], votes=torch.tensor(votes), vote_names=names)
    slow = []
    for label in range(4):
        shares = []
        for row in votes[(data.labels == label).numpy()]:
            told = [row[names.index(name)] for name in data.classes]
            if sum(told):
                shares.append([n / sum(told) for n in told])
        mean = np.mean(shares, axis=0)
        mean[label] = 0
        slow.append(mean / mean.sum())
    assert np.allclose(human_confusion(data).numpy(), slow) and human_confusion(data).dtype == torch.float64


def test_what_has_no_confusion():
    votes = torch.tensor([[3.0, 1], [4, 0], [0, 4], [0, 4]])
    data = data_of([2, 2], labels=torch.tensor([0, 0, 1, 1]), votes=votes, vote_names=("surprise", "fear"))
    with pytest.raises(DataError, match="labelled fear, so its errors are unknown"):
        human_confusion(data)
    with pytest.raises(DataError, match="no votes for disgust; they are for surprise, fear"):
        human_confusion(replace(data, classes=("surprise", "disgust")))
    with pytest.raises(DataError, match="no votes in it"):
        human_confusion(data_of([2, 2]))
    with pytest.raises(DataError, match="labelled disgust"):  # a class without an image
        human_confusion(replace(data, classes=CLASSES[:3], votes=torch.ones(4, 3), vote_names=CLASSES[:3]))


@pytest.mark.parametrize("seed", range(40))
def test_imbalance_against_a_slow_version(seed):
    draw = np.random.default_rng(seed)
    classes = int(draw.integers(1, 8))
    counts = draw.integers(20, 120, classes).tolist()
    if seed % 3 == 0:
        counts = [counts[0]] * classes  # ties everywhere
    factor = float(draw.choice([1, 1.5, 3, 10, 19.5]))
    data = data_of(counts, seed)
    places = sorted(range(classes), key=lambda c: (-counts[c], c))
    wanted = [min(counts[c], round(max(counts) * factor ** (-places.index(c) / (classes - 1 or 1)))) for c in range(classes)]
    thin, index = imbalance(data, factor, seed), imbalance_indices(data, factor, seed)
    assert thin.counts.tolist() == wanted and index.tolist() == sorted(set(index.tolist()))
    assert torch.equal(thin.images, data.images[index]) and list(thin.sources) == [data.sources[k] for k in index]
    assert thin.fingerprint() == imbalance(data, factor, seed).fingerprint()
    assert set(imbalance_indices(data, factor + 0.4, seed).tolist()) <= set(index.tolist())  # nested
    assert f"factor {factor}, seed {seed}: {sum(wanted)} of {sum(counts)} images" in thin.notes[-1]
    assert thin.notes[-1].endswith(f"smallest class {max(wanted) / min(wanted):.2f}")


def test_imbalance_refuses():
    data = data_of([40, 20, 10])
    for factor in (0.99, 0, -3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="at least 1"):
            imbalance(data, factor)
    with pytest.raises(DataError, match="class fear has no image"):
        imbalance(data_of([40, 0, 10]), 2)
    with pytest.raises(DataError, match="no image of disgust.* below 80"):
        imbalance(data, 80)
    assert imbalance(data, 79).counts.tolist() == [40, 5, 1]
    with pytest.raises(DataError, match="made in train, not in valid"):
        imbalance(stratified_split(data)[1], 2)
    assert len(set(imbalance_indices(data, 5, 0).tolist()) ^ set(imbalance_indices(data, 5, 1).tolist())) > 0


def test_everything_of_an_image_stays_with_it():
    data = data_of([40, 20, 10], identity=torch.arange(70), attributes={"k": np.arange(70)}, notes=("first",))
    noisy = symmetric_noise(data, 0.2)
    thin = noisy.subset(imbalance_indices(data, 20))
    assert thin.identity.tolist() == thin.attributes["k"].tolist() == [int(s[-17:-12]) - 1 for s in thin.sources]
    assert thin.attributes["clean_label"].tolist() == data.labels[thin.identity].tolist() and thin.notes[0] == "first" and len(thin.notes) == 2
    assert imbalance(data, 20).identity.tolist() == thin.identity.tolist() and imbalance(data, 20).notes[0] == "first"


@pytest.mark.parametrize("kind", ["symmetric", "confusion", "listed"])
def test_wrong_labels_choose_nothing(data, tmp_path, kind):
    """Validation that is cut after the noise would judge by wrong labels, and classes would be thinned by them."""
    noisy = noises(tmp_path)[kind](data, 0)
    for cut in (stratified_split, valid_indices):
        with pytest.raises(DataError, match=r"raf-db: labels were changed \(\d+ of 530\): cut validation first, then disturb train"):
            cut(noisy)
    for thin in (imbalance, imbalance_indices):
        with pytest.raises(DataError, match=r"labels were changed \(\d+ of 530\): thin the classes first, then disturb train"):
            thin(noisy, 20)
    back = replace(noisy, labels=torch.from_numpy(noisy.attributes["clean_label"]))  # restored: nothing is wrong any more
    assert torch.equal(valid_indices(back), valid_indices(data)) and torch.equal(imbalance_indices(back, 20), imbalance_indices(data, 20))
    train, valid = stratified_split(data)
    assert len(noises(tmp_path)[kind](imbalance(train, 20), 0)) < len(train) and "clean_label" not in (valid.attributes or {})


@pytest.mark.parametrize("identity", [None, torch.tensor([4, 4, 1, 0, 1])])
def test_what_stays_together(identity):
    data = data_of([3, 2], identity=identity)
    images = data.images.clone()
    images[4] = images[1]
    assert together(replace(data, images=images)).tolist() == ([0, 1, 2, 3, 1] if identity is None else [0, 0, 1, 2, 1])


@pytest.mark.parametrize(("first", "aligned"), [(0, False), (0, True), (1, False), (1, True)])
def test_lists_of_either_form(data, tmp_path, first, aligned):
    labels = symmetric_noise(data, 0.3, 1).labels
    path = written(tmp_path / "noise.txt", data, labels, first, aligned)
    assert torch.equal(listed_noise(data, path).labels, labels) and f"counted from {first})" in listed_noise(data, path).notes[-1]
    text = path.read_text("utf-8")
    path.write_bytes(("\ufeff" + text.replace("/", "\\").replace("\n", "\r\n") + "\r\n").encode())  # as an editor on Windows would leave it
    assert torch.equal(listed_noise(data, str(path)).labels, labels)
    path.write_text("\n".join(sorted(text.splitlines(), reverse=True) + [f"test_{k:04}.jpg {first + 3}" for k in range(1, 6)]), "utf-8")
    train, _ = stratified_split(data, 0.2)
    noisy = listed_noise(train, path)
    assert noisy.labels.tolist() == [int(labels[int(source[-17:-12]) - 1]) for source in train.sources]
    assert f"{len(data) - len(train)} line(s) about other train images not used, 5 line(s) about other test images not used" in noisy.notes[-1]


@pytest.mark.parametrize(("change", "message"), [
    (lambda lines: lines[1:], r"noise\.txt: Image/aligned/train_00001_aligned\.jpg is not named in it \(1 of 530"),
    (lambda lines: [*lines, "train_00007.jpg 3"], r"noise\.txt line 531: train_00007\.jpg is listed twice, first in line 7"),
    (lambda lines: [*lines, "/a/b/train_00007_aligned.jpg 3"], r"line 531: train_00007\.jpg is listed twice, first in line 7"),
    (lambda lines: [lines[0], "train_00002.jpg 8", *lines[2:]], r"noise\.txt line 2: label '8' is neither in 0\.\.6 nor in 1\.\.7"),
    (lambda lines: [lines[0], "train_00002.jpg -1", *lines[2:]], r"line 2: label '-1' is neither"),
    (lambda lines: [lines[0], "train_00002.jpg " + "7" * 5000, *lines[2:]], r"line 2: label '77777777777777777777' is neither"),
    (lambda lines: [lines[0], "train_00002.jpg \u0663", *lines[2:]], "line 2: label .* is neither"),
    (lambda lines: [lines[0], "train_00002.jpg", *lines[2:]], r"line 2: 1 field\(s\), not two"),
    (lambda lines: [lines[0], "", *lines[1:]], r"line 2: 0 field\(s\), not two"),
    (lambda lines: [], r"line 1: 0 field\(s\), not two"),
    (lambda lines: [*lines, "DSC_1.jpg 3"], r"line 531: DSC_1\.jpg is no image of raf-db, and begins neither with train_ nor with test_"),
    (lambda lines: ["train_00001.jpg 0", *lines[1:]], r"noise\.txt line 1 has label 0 and line \d+ label 7: .* not both"),
    (lambda lines: [*lines, "test_0001.jpg 0"], r"noise\.txt line 531 has label 0 and line \d+ label 7: .* not both"),
    (lambda lines: [line[:-1] + "3" for line in lines], r"noise\.txt: no label is 0 and none is 7, so it cannot be told")])
def test_lists_that_are_refused(data, tmp_path, change, message):
    path = written(tmp_path / "noise.txt", data, data.labels)
    path.write_text("\n".join(change(path.read_text("utf-8").splitlines())), "utf-8")
    with pytest.raises(DataError, match=message) as caught:
        listed_noise(data, path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_lists_that_cannot_be_read(data, tmp_path):
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\n" * 20)
    (tmp_path / "zeros.txt").write_bytes(bytes(500))
    for name, message in [("picture.txt", "UnicodeDecodeError"), ("zeros.txt", r"zeros\.txt line 1: 1 field"), ("none.txt", "FileNotFoundError"),
                          ("", "IsADirectoryError|PermissionError")]:
        with pytest.raises(DataError, match=message):
            listed_noise(data, tmp_path / name)


def test_two_images_of_one_name_cannot_be_listed(data, tmp_path):
    double = replace(data, sources=["a/train_00002.jpg", *data.sources[1:]])
    with pytest.raises(DataError, match=r"more than one image is called train_00002\.jpg"):
        listed_noise(double, written(tmp_path / "noise.txt", data, data.labels))
