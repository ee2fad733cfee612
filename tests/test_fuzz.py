"""Two thousand damaged inputs, always the same ones: each is read, with every image accounted for, or refused in one clear line.

Nothing else may come out: no other exception, no warning, no case that takes ten seconds, no image or row that is silently gone.
"""

import contextlib
import csv
import io
import random
import re
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from layout_writers import WRITERS
from PIL import Image

from cucn_nb import faces
from cucn_nb.datasets import BadFiles, DataError, read
from cucn_nb.images import ACCEPTED, REFUSED, SMALLEST, decode
from cucn_nb.layouts import listings

EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\1", b"\x80\0\0\0", b"\xff\xff")


class TooSlow(BaseException):
    """Ten seconds are over."""


@contextlib.contextmanager
def limits():
    """No warning, no case that hangs."""
    def ring(*_):
        raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(10)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusal(error):
    """The message of a DataError, once it is seen to be one short line."""
    assert type(error) in (DataError, BadFiles) and str(error).isprintable() and len(str(error)) < 600, error
    return str(error)


# --- images ---

def in_format(extension, **options):
    mode = options.pop("mode", "RGB")
    file = io.BytesIO()
    first, second = (Image.fromarray(image[:24, :20]).convert(mode) for image in faces.load("test").images[:2, ::2, ::2])
    if options.pop("moving", False):
        options |= {"save_all": True, "append_images": [second]}
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    if options.pop("exif", False):
        options["exif"] = exif
    first.save(file, {"jpg": "JPEG", "tif": "TIFF", "ppm": "PPM"}.get(extension, extension.upper()), **options)
    return extension, file.getvalue()


IMAGES = {
    "png": ("png", {}), "png palette": ("png", {"mode": "P", "transparency": bytes(256)}),
    "png grey alpha exif": ("png", {"mode": "LA", "exif": True}), "png deep": ("png", {"mode": "I;16"}), "png moving": ("png", {"moving": True}),
    "jpg": ("jpg", {}), "jpg progressive": ("jpg", {"progressive": True}), "jpg exif": ("jpg", {"exif": True, "comment": "a note"}),
    "jpg inks": ("jpg", {"mode": "CMYK"}), "gif": ("gif", {"mode": "P"}),
    "gif moving": ("gif", {"mode": "P", "moving": True}), "bmp": ("bmp", {}), "bmp palette": ("bmp", {"mode": "P"}), "tif": ("tif", {"exif": True}),
    "tif lzw": ("tif", {"compression": "tiff_lzw"}), "tif deflate": ("tif", {"compression": "tiff_adobe_deflate"}),
    "tif jpeg": ("tif", {"compression": "jpeg"}), "tif moving": ("tif", {"moving": True}), "webp": ("webp", {"exif": True}),
    "webp exact": ("webp", {"lossless": True}), "webp moving": ("webp", {"moving": True}), "ppm": ("ppm", {}), "pgm": ("ppm", {"mode": "L"}),
}
EACH = 46  # cases of each


def damaged(data, draw):
    """One to three injuries of the kinds that disks, networks and mischief inflict."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind, at = draw.randrange(8), draw.randrange(len(data) if draw.random() < 0.5 else min(len(data), 200))  # headers more often
        to = min(len(data), at + draw.choice((1, 4, 16, 64)))
        if kind == 0:
            for _ in range(draw.choice((1, 8))):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at] = draw.randrange(256)
        elif kind == 2:
            del data[max(at, 1):]
        elif kind == 3:
            data[at:at] = draw.randbytes(draw.choice((1, 4, 50)))
        elif kind == 4:
            del data[max(at, 1):max(to, 2)]
        elif kind == 5:  # two pieces change places
            other = draw.randrange(len(data))
            size = min(to - at, len(data) - other)
            data[at:at + size], data[other:other + size] = data[other:other + size], data[at:at + size]
        elif kind == 6:
            data[to:to] = data[at:to]
        else:
            extreme = draw.choice(EXTREMES)
            data[at:at + len(extreme)] = extreme
    return bytes(data)


@pytest.fixture(scope="module")
def mutants(tmp_path_factory):
    """A thousand damaged images in one class folder: {path: what it was made of}."""
    folder = tmp_path_factory.mktemp("mutants") / "data"
    made = {}
    for name, (extension, options) in IMAGES.items():
        deep = options.get("mode") == "I;16"
        suffix, good = in_format(extension, **(options | {"mode": "L"} if deep else options))
        if deep:
            file = io.BytesIO()
            Image.fromarray(np.asarray(Image.open(io.BytesIO(good))).astype(np.uint16) * 257).save(file, "PNG")
            good = file.getvalue()
        draw = random.Random(name)
        for k in range(EACH):
            path = folder / ("happy" if k % 2 else "sad") / f"{name.replace(' ', '_')}_{k:02}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(damaged(good, draw))
            made[path] = name
    assert len(made) == len(IMAGES) * EACH > 1000
    return folder, made


def test_undamaged_they_are_all_understood(tmp_path):
    kinds = {}
    for name, (extension, options) in IMAGES.items():
        if options.get("mode") == "I;16":
            continue
        path = tmp_path / f"a.{extension}"
        path.write_bytes(in_format(extension, **options)[1])
        kinds[name] = decode(path)[0].kind
    assert {name for name, kind in kinds.items() if kind not in ACCEPTED} == {name for name in IMAGES if "moving" in name}
    assert {kind for name, kind in kinds.items() if "moving" in name} == {"several pictures"}


def test_damaged_images_have_a_verdict(mutants):
    wrong, kinds = [], {}
    for path in mutants[1]:
        try:
            with limits():
                verdict, pixels = decode(path)
                kinds[path] = verdict.kind
                assert verdict.accepted == (verdict.kind in ACCEPTED) != (verdict.kind in REFUSED)
                assert verdict.words.isprintable() and len(verdict.words) < 400
                assert pixels is not None or not verdict.accepted
                if pixels is not None:
                    assert pixels.dtype == np.uint8 and pixels.shape == (*verdict.size[::-1], 3) and min(verdict.size) >= SMALLEST
        except (Exception, TooSlow) as error:
            wrong.append(f"{path.name}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    assert sum(kind in ACCEPTED for kind in kinds.values()) > 100 and sum(kind in REFUSED for kind in kinds.values()) > 400  # both happen


def test_damaged_images_are_read_or_listed(mutants, tmp_path):
    """Every file is in the data or in the list of what was left out, and strict reading names the same ones."""
    folder, made = mutants
    kinds = {path: decode(path)[0] for path in made}
    bad = {path.relative_to(folder).as_posix() for path, verdict in kinds.items() if not verdict.accepted}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read(folder, image_size=8, quarantine=tmp_path / "out.csv")
        with pytest.raises(BadFiles) as error:
            read(folder, image_size=8)
    refusal(error.value)
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        listed = {row["path"] for row in csv.DictReader(file)}
    assert listed == bad == {file for _, file, *_ in error.value.bad} and len(data) + len(bad) == len(made)
    assert set(data.sources) == {path.relative_to(folder).as_posix() for path in made} - bad


# --- tables and lists of labels ---

PIECES = [b'"', b'"', b'"', b",", b",", b"\n", b"\r", b"\r\n", b"\0", b" ", b"\t", b"-", b".", b"0", b"1", b"7", b"9", b"/", b"../", b"\\",
          b"\xef\xbb\xbf", "²".encode(), "٣".encode(), b"\xff", b"9" * 30, b"9" * 5000, b"1e400", b"nan", b"''", b"\x1c", "\u2028".encode()]


def altered(text, draw):
    """One injury of a table, as editors, spreadsheets and cut-off copies make them; never none."""
    while True:
        data, lines = bytearray(text), text.split(b"\n")
        kind, at = draw.randrange(9), draw.randrange(len(text))
        borders = [i for i, byte in enumerate(text) if byte in b",\n "]
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at]
        elif kind == 2:
            data[at:at] = draw.choice(PIECES)
        elif kind == 3:  # beside a border between fields
            at = draw.choice(borders) + draw.randrange(2)
            data[at:at] = draw.choice(PIECES)
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            a, b = draw.randrange(len(lines)), draw.randrange(len(lines))
            lines[a], lines[b] = lines[b], lines[a]
            data = bytearray(b"\n".join(lines))
        elif kind == 6:
            lines.insert(draw.randrange(len(lines)), draw.choice(lines))
            data = bytearray(b"\n".join(lines))
        elif kind == 7:
            del lines[draw.randrange(len(lines))]
            data = bytearray(b"\n".join(lines))
        else:  # a field from elsewhere
            start, end = sorted(draw.sample(borders, 2))
            data[at:at + draw.randrange(9)] = text[start + 1:end][:60]
        if bytes(data) != text:
            return bytes(data)


def lines_of(data):
    """The lines of a table that are not blank, by the simplest of parsers."""
    text = data.decode("utf-8-sig", "surrogateescape")
    return [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]


def noted(listing):
    """How many rows or images the notes say are left out."""
    return sum(int(re.search(r"\d[\d,]*", note).group().replace(",", "")) for note in listing.notes if "left out" in note)


def said_of(listings_by_split):
    """{file: all that is known of it}."""
    known = {}
    for split, listing in listings_by_split.items():
        for i, file in enumerate(listing.files):
            known[split, file] = (listing.classes[listing.labels[i]], listing.boxes and listing.boxes[i], listing.identity and listing.identity[i],
                                  None if listing.votes is None else tuple(listing.votes[i].tolist()))
    return known


def rows_of_usage(usage):
    return lambda lines: sum(line.replace('"', "").split(",")[0] == usage for line in lines[1:])


TABLES = [  # layout, table, cases, splits that it is about, how many rows the simplest parser finds
    ("raf-db", "EmoLabel/list_patition_label.txt", 170, ("train", "test"), len),
    ("ferplus", "FER2013Train/label.csv", 150, ("train",), len),
    ("ferplus", "fer2013new.csv", 130, ("valid",), rows_of_usage("PublicTest")),
    ("affectnet csv", "Manually_Annotated_file_lists/training.csv", 200, ("train",),
     lambda lines: sum(not line.startswith("subDirectory") for line in lines)),  # the header may be lost, which is noted
    ("csv", "faces.csv", 180, ("train", "valid", "test"), lambda lines: len(lines) - 1),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each layout with fourteen faces a split."""
    images, made = faces.load("test").images[:42, ::4, ::4], {}
    for layout, (writer, splits, *_) in WRITERS.items():
        root = tmp_path_factory.mktemp("tables") / "data"
        writer(root, {split: (images[14 * k:14 * k + 14], np.arange(14) % 7) for k, split in enumerate(splits)})
        made[layout] = root
    return made


def judge(layout, root, path, good, content, before, splits, rows):
    """What is wrong with the answer to one altered table; None if nothing is."""
    path.write_bytes(content)
    try:
        with limits():
            found = listings(root / "faces.csv" if layout == "csv" else root, layout)
    except DataError as error:
        refusal(error)
        return None
    finally:
        path.write_bytes(good)
    lines = lines_of(content)
    have = sum(len(found[split]) + noted(found[split]) for split in splits if split in found)
    if have != rows(lines):
        return f"{have} images read or noted, {rows(lines)} rows in the file"
    now = said_of(found)
    known = 1 if lines[0] != lines_of(good)[0] else None  # of a column whose name is altered nothing is known, which is noted; the class stays
    changed = sum(1 for key in before.keys() & now.keys() if before[key][:known] != now[key][:known])
    touched = len(set(lines_of(good)) - set(lines))
    if changed > touched:
        return f"{changed} images changed by {touched} altered lines"
    return None


@pytest.mark.parametrize(("layout", "table", "cases", "splits", "rows"), TABLES, ids=[f"{layout} {Path(table).name}" for layout, table, *_ in TABLES])
def test_altered_tables(layout, table, cases, splits, rows, written):
    root = written[layout]
    path = root / table
    good, draw, wrong = path.read_bytes(), random.Random(table), []
    before = said_of(listings(root / "faces.csv" if layout == "csv" else root, layout))
    assert rows(lines_of(good)) == 14 * len(splits)
    for case in range(cases):
        content = altered(good, draw)
        try:
            problem = judge(layout, root, path, good, content, before, splits, rows)
        except (Exception, TooSlow) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            lost = [line for line in content.split(b"\n") if line not in good.split(b"\n")]
            wrong.append(f"case {case}: {problem[:300]}; altered {lost[:2]!r:.300}")
    assert not wrong, "\n".join([f"{len(wrong)} of {cases}", *wrong])


@pytest.mark.parametrize(("layout", "table", "splits", "rows"), [(layout, table, splits, rows) for layout, table, _, splits, rows in TABLES[1:]],
                         ids=[f"{layout} {Path(table).name}" for layout, table, *_ in TABLES[1:]])
def test_an_open_quote_swallows_no_rows(layout, table, splits, rows, written):
    """Before each field of some lines, and after it."""
    root = written[layout]
    path = root / table
    good, wrong = path.read_bytes(), []
    before = said_of(listings(root / "faces.csv" if layout == "csv" else root, layout))
    lines = good.split(b"\n")
    for number in (0, 1, 2, len(lines) - 3, len(lines) - 2):
        for field in range(lines[number].count(b",") + 1):
            for front in (True, False):
                fields = lines[number].split(b",")
                fields[field] = b'"' + fields[field] if front else fields[field] + b'"'
                content = b"\n".join([*lines[:number], b",".join(fields), *lines[number + 1:]])
                if problem := judge(layout, root, path, good, content, before, splits, rows):
                    wrong.append(f"line {number + 1} field {field + 1}: {problem}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("layout", "table", "splits", "rows"), [(layout, table, splits, rows) for layout, table, _, splits, rows in TABLES],
                         ids=[f"{layout} {Path(table).name}" for layout, table, *_ in TABLES])
def test_numbers_of_any_length(layout, table, splits, rows, written):
    """5,000 digits in place of every number of a line, and 20."""
    root = written[layout]
    path = root / table
    good = path.read_bytes()
    before = said_of(listings(root / "faces.csv" if layout == "csv" else root, layout))
    lines = good.split(b"\n")
    for match in re.finditer(rb"\d+", lines[-2]):
        for digits in (b"9" * 5000, b"9" * 20, b"0" * 5000):
            line = lines[-2][:match.start()] + digits + lines[-2][match.end():]
            assert not judge(layout, root, path, good, b"\n".join([*lines[:-2], line, lines[-1]]), before, splits, rows)


def test_altered_tables_beside_numbered_folders(written):
    """The table repeats what the folders say: whatever is done to it, it is refused or changes nothing."""
    root = written["raf-db folders"]
    path = root / "train_labels.csv"
    good, draw, wrong = path.read_bytes(), random.Random(5), []
    before = said_of(listings(root))
    for case in range(100):
        path.write_bytes(altered(good, draw))
        try:
            with limits():
                if said_of(listings(root)) != before:
                    wrong.append(f"case {case}: another listing")
        except DataError as error:
            refusal(error)
        except (Exception, TooSlow) as error:
            wrong.append(f"case {case}: {type(error).__name__}: {str(error)[:200]}")
    path.write_bytes(good)
    assert not wrong, "\n".join(wrong)


def test_altered_label_arrays(written):
    """One array of AffectNet's newer release: its image is read under a label, left out and noted, or all is refused."""
    root = written["affectnet npy"]
    path = root / "train_set" / "annotations" / "3_exp.npy"
    good, draw, wrong = path.read_bytes(), random.Random(6), []
    before = said_of(listings(root))
    for case in range(120):
        path.write_bytes(damaged(good, draw))
        try:
            with limits():
                found = listings(root)
            now = said_of(found)
            if sum(map(len, found.values())) + sum(map(noted, found.values())) != 28:
                wrong.append(f"case {case}: {now.keys() ^ before.keys()} silently gone")
            if sum(before[key] != now[key] for key in now) > 1:
                wrong.append(f"case {case}: more than one label changed")
        except DataError as error:
            refusal(error)
        except (Exception, TooSlow) as error:
            wrong.append(f"case {case}: {type(error).__name__}: {str(error)[:200]}; {path.read_bytes()!r}")
    path.write_bytes(good)
    assert not wrong, "\n".join(wrong)


# --- FER2013's csv ---

@pytest.mark.parametrize("order", ["emotion,pixels,Usage", "Usage,emotion,pixels", "pixels,Usage,emotion"])
def test_altered_fer2013(order, tmp_path):
    """Every row of a split is read or noted, and rows on lines that were not altered keep their pixels and label."""
    images = faces.load("test").images[:12, :48, :48, 0]
    usages = ["Training"] * 8 + ["PublicTest"] * 3 + ["PrivateTest"]
    rows = [{"emotion": str(i % 7), "pixels": " ".join(map(str, image.ravel())), "Usage": usage}
            for i, (image, usage) in enumerate(zip(images, usages, strict=True))]
    path, draw, columns = tmp_path / "fer2013.csv", random.Random(order), order.split(",")
    good = "\n".join([order, *(",".join(row[column] for column in columns) for row in rows), ""]).encode()
    split_of = {"train": "Training", "test": "PublicTest"}
    path.write_bytes(good)
    whole = [read(path, split) for split in split_of]
    before = {image.numpy().tobytes(): label for data in whole for image, label in zip(data.images, data.labels.tolist(), strict=True)}
    wrong = []
    for case in range(36):
        content = altered(good, draw)
        path.write_bytes(content)
        lines = lines_of(content)
        touched = len(set(lines_of(good)) - set(lines))
        try:
            for split, usage in split_of.items():
                with limits():
                    data = read(path, split)
                have = len(data) + sum(int(note.split()[0]) for note in data.notes)
                wanted = sum(line.split(",")[columns.index("Usage")] == usage for line in lines[1:])
                if have != wanted:
                    wrong.append(f"case {case}: {have} rows of {split} read or noted, {wanted} in the file")
                new = sum(before.get(image.numpy().tobytes()) != label for image, label in zip(data.images, data.labels.tolist(), strict=True))
                if new > touched:
                    wrong.append(f"case {case}: {new} images of {split} changed by {touched} altered lines")
        except DataError as error:
            refusal(error)
        except (Exception, TooSlow) as error:
            wrong.append(f"case {case}: {type(error).__name__}: {str(error)[:300]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("name", "column"), [("fer2013.csv", "emotion"), ("fer2013.csv", "pixels"), ("fer2013.csv", "Usage"),
                                              ("fer2013.csv", "note"), ("fer2013new.csv", "NF"), ("fer2013new.csv", "fear")])
@pytest.mark.parametrize("spoil", ['"{}', "9" * 5000, "9" * 30, "1" * 9], ids=("open quote", "5000 digits", "30 digits", "9 digits"))
def test_one_spoiled_field_of_fer2013(name, column, spoil, tmp_path):
    """With a last column that nobody reads, of which an open quote would swallow the rest of the file."""
    votes = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    rows = [[str(i), " ".join(["7"] * 2303 + [str(i)]), "Training", "-"] for i in range(5)]
    tables = {"fer2013.csv": [["emotion", "pixels", "Usage", "note"], *rows],
              "fer2013new.csv": [["Usage", *votes.split(",")], *(["Training", *"1234567890"] for _ in range(5))]}
    field = tables[name][2][tables[name][0].index(column)]
    tables[name][2][tables[name][0].index(column)] = spoil.format(field)
    if name == "fer2013.csv":
        del tables["fer2013new.csv"]  # beside which lost rows would be seen
    for file, rows in tables.items():
        (tmp_path / file).write_text("\n".join(map(",".join, rows)) + "\n")
    harmless = column == "note" and '"' not in spoil or name == "fer2013new.csv" and spoil == "1" * 9
    try:
        with limits():
            assert len(read(tmp_path)) == 5 and harmless
    except DataError as error:
        assert not harmless and len(refusal(error)) > 20


