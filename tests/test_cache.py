"""A cache is whole or not there: builds killed at any moment, two at once, full disks, altered files, and what counts as a change of the source."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from layout_writers import write_ferplus
from PIL import Image

from cucn_nb import cache, faces
from cucn_nb.cache import cached, stamp
from cucn_nb.datasets import BadFiles, DataError, read

WORDS = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral", "contempt")


def album(root: Path, train: int = 12, test: int = 4, first: int = 0) -> Path:
    """Rendered faces of 16 x 16 pixels in class folders."""
    images = faces.load("train").images[first:first + train + test, ::4, ::4]
    for i, image in enumerate(images):
        path = root / ("train" if i < train else "test") / WORDS[i % 2] / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def same(data, source, plainly=None, **options):
    """Does every split of a cache equal what is read of the source? `plainly`: that, where it was read already."""
    for split, part in data.items():
        plain = (plainly or {}).get(split) or read(source, split, **options)
        if (part.fingerprint(), part.sources, part.notes, part.manifest) != (plain.fingerprint(), plain.sources, plain.notes, plain.manifest):
            return False
    return set(data) == {"train", "test"}


def left(folder: Path) -> list[str]:
    """What lies in the folder of caches beside whole ones and their locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith((".safetensors", ".lock")))


def the_file(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


# --- killed ---

SERVER = """
import os, sys, time
import joblib, filelock, torch
from cucn_nb import cache, datasets, images
for line in sys.stdin:
    source, home = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        cache.cached(source, home, say=lambda line: print("begun", flush=True))
        os._exit(0)
    print(child, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Builds:
    """Builds in processes of their own, forked from one that has imported everything and has one thread."""

    def __init__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, source, home, after=None):
        """Build, and kill the build's process group so many seconds after its decoding began; (seconds from there, exit status)."""
        self.server.stdin.write(f"{source}\t{home}\n")
        self.server.stdin.flush()
        child = int(self.server.stdout.readline())
        assert self.server.stdout.readline() == "begun\n"
        start = time.perf_counter()
        if after is not None:
            time.sleep(after)
            try:
                os.killpg(child, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it was quicker
        ended = self.server.stdout.readline().split()
        return time.perf_counter() - start, int(ended[1])

    def close(self):
        self.server.stdin.close()
        assert self.server.wait(20) == 0
        self.server.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_build_killed_at_any_moment_leaves_nothing_that_opens(tmp_path):
    """25 moments, evenly drawn over the time of a build; every second one where an older cache lies already."""
    source, homes, plainly = album(tmp_path / "album", 500, 100), tmp_path / "homes", {}
    draw, builds, outcomes = random.Random(0), Builds(), []
    try:
        seconds = min(builds.run(source, homes / f"measured {i}")[0] for i in range(3))
        for k in range(25):
            home = homes / str(k)
            old = None
            if k % 2:
                said: list[str] = []
                cached(source, home, say=said.append)
                old = the_file(home).read_bytes()
                changed = source / "train" / WORDS[0] / "00000.png"
                Image.fromarray(faces.load("test").images[k, ::4, ::4]).save(changed)
                plainly = {}
            plainly = plainly or {split: read(source, split) for split in ("train", "test")}
            _, status = builds.run(source, home, draw.uniform(0, seconds))
            assert status in (0, -signal.SIGKILL)
            found = list(home.glob("*.safetensors"))
            content = found[0].read_bytes() if found else None
            if status:  # before the end: the old file as it was, none, or the new one whole
                outcomes.append("unfinished" if content == old else "whole")
            said = []
            data = cached(source, home, say=said.append)
            assert same(data, source, plainly), k
            if not status or outcomes[-1] == "whole":
                assert said == []
            else:
                assert len(said) == 1 and said[0].endswith(": the source has changed" if k % 2 else ".safetensors")
            assert left(home) == []
            del data
    finally:
        builds.close()
    assert outcomes.count("unfinished") >= 5, outcomes  # or nothing was tried here; how many builds are cut short depends on how busy the machine is


def test_two_processes_build_once(tmp_path):
    source = album(tmp_path / "album", 60, 20)
    code = ("import sys; from cucn_nb.cache import cached; data = cached(sys.argv[1], sys.argv[2], say=lambda line: print(line.split()[0]));"
            "print(*(part.fingerprint() for part in data.values()))")
    runs = [subprocess.Popen([sys.executable, "-c", code, source, tmp_path / "home"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [run.communicate(timeout=100)[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and [word for answer in answers for word in answer[:-2]].count("making") == 1
    want = [read(source, split).fingerprint() for split in ("train", "test")]
    assert all(answer[-2:] == want for answer in answers) and left(tmp_path / "home") == []


def test_who_waits_for_a_build_opens_what_it_made(tmp_path, monkeypatch):
    """While another holds the lock nothing is built; when it is free, the cache that was made meanwhile is opened."""
    source, home = album(tmp_path / "album"), tmp_path / "home"
    cached(source, home, say=str)
    file = the_file(home)
    finished = file.read_bytes()
    times = os.stat(file)
    file.unlink()
    acquire = FileLock.acquire

    def meanwhile(lock, *args, **options):
        file.write_bytes(finished)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        return acquire(lock, *args, **options)

    monkeypatch.setattr(FileLock, "acquire", meanwhile)
    said: list[str] = []
    assert same(cached(source, home, say=said.append), source) and said == []


# --- no room, no right ---

@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be taken beforehand here")
@pytest.mark.parametrize("call", [1, 2])
def test_a_full_disk_is_an_error_at_the_beginning(tmp_path, monkeypatch, call):
    source, home, calls = album(tmp_path / "album"), tmp_path / "home", []

    def full(*args):
        calls.append(args)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        patch.setattr(np, "memmap", lambda file, dtype, mode, start, shape: np.zeros(shape, dtype))
        with pytest.raises(DataError, match="no room for a cache of 0.0 GB .No space left") as error:
            cached(source, home, say=str)
    assert str(home) in str(error.value) and left(home) == [] and not list(home.glob("*.safetensors"))
    assert same(cached(source, home, say=str), source)


@pytest.mark.parametrize(("module", "name"), [(os, "replace"), (os, "fsync"), (os, "utime")])
def test_a_disk_that_fails_at_the_end(tmp_path, monkeypatch, module, name):
    source, home = album(tmp_path / "album"), tmp_path / "home"

    def fails(*args, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fails)
        with pytest.raises(DataError, match="the cache cannot be written .Input/output error") as error:
            cached(source, home, say=str)
    assert "\n" not in str(error.value) and left(home) == [] and not list(home.glob("*.safetensors"))


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    source, home = album(tmp_path / "album"), tmp_path / "home"
    if os.geteuid() != 0:
        home.mkdir(mode=0o500)
        with pytest.raises(DataError, match="the cache cannot be written"):
            cached(source, home, say=str)
        return

    def forbidden(*args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for owner, name in ((Path, "mkdir"), (FileLock, "acquire"), (Path, "open")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, forbidden)
            with pytest.raises(DataError, match="the cache cannot be written .Permission denied") as error:
                cached(source, home, say=str)
        assert str(home) in str(error.value) and "\n" not in str(error.value)
    assert same(cached(source, home, say=str), source)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "home").touch()
    with pytest.raises(DataError, match="the cache cannot be written"):
        cached(album(tmp_path / "album"), tmp_path / "home", say=str)


# --- altered ---

def test_files_altered_outside_of_the_images_never_open_as_good(tmp_path):
    """A hundred single bits of the table, the padding and the arrays behind the images, with the file's own date restored; and other lengths."""
    source, home = album(tmp_path / "album"), tmp_path / "home"
    cached(source, home, say=str)
    file = the_file(home)
    good, times, draw = file.read_bytes(), os.stat(file).st_mtime_ns, random.Random(1)
    table_ends = good.rindex(b"}", 0, cache._HEAD) + 1
    images_end = cache._HEAD + (12 + 4) * 3 * 16 * 16
    places = ([*range(8)] + [draw.randrange(8, table_ends) for _ in range(45)] + [draw.randrange(table_ends, cache._HEAD) for _ in range(7)]
              + [draw.randrange(images_end, len(good)) for _ in range(40)])
    altered = []
    for place in places:
        content = bytearray(good)
        content[place] ^= 1 << draw.randrange(8)
        altered.append(bytes(content))
    altered += [good[:length] for length in (0, 1, 8, 100, table_ends, cache._HEAD, images_end, len(good) - 1)]
    altered += [good + b"\0", good + good[-1:] * 99]
    assert len(altered) == 110
    for content in altered:
        file.write_bytes(content)
        os.utime(file, ns=(times, times))
        with pytest.raises(cache._Unfit, match="damaged|cut off"):
            cache._read_cache(file, "any")
    file.write_bytes(altered[20])
    os.utime(file, ns=(times, times))
    said: list[str] = []
    assert same(cached(source, home, say=said.append), source) and len(said) == 1 and "damaged" in said[0]
    file.write_bytes(good)
    os.utime(file, ns=(times, times))
    said.clear()
    assert same(cached(source, home, say=said.append), source) and said == []  # the file itself, with its own date, is good


def test_an_altered_table_is_no_cache_even_with_numbers_of_other_kinds(tmp_path):
    """What JSON allows and this file never holds."""
    source, home = album(tmp_path / "album"), tmp_path / "home"
    cached(source, home, say=str)
    file = the_file(home)
    good = file.read_bytes()
    head = good[8:cache._HEAD].rstrip()
    for old, new in ((b'"data_offsets": [0, ', b'"data_offsets": [0. '), (b'"written": "1', b'"written": "x'), (b".images", b".imagez"),
                     (b'"U8"', b'"U9"'), (b"[0, ", b"[-1,"), (b'{"__metadata__"', b'["__metadata__"'), (b'"shape": [', b'"shape": {'),
                     (b'"checksum"', b'"checkzum"')):
        assert old in head
        file.write_bytes(good[:8] + head.replace(old, new).ljust(cache._HEAD - 8) + good[cache._HEAD:])
        with pytest.raises(cache._Unfit, match="damaged|cut off"):
            cache._read_cache(file, "any")


# --- fresh or stale ---

def test_opening_changes_nothing(tmp_path):
    source, home, said = album(tmp_path / "album"), tmp_path / "home", []
    before, states = stamp(source), set()
    for _ in range(3):
        data = cached(source, home, say=said.append)
        assert int(data["train"].images[:].max()) > 0 and stamp(source) == before
        states.add((the_file(home).read_bytes(), os.stat(the_file(home)).st_mtime_ns))
    assert len(said) == len(states) == 1 and not data["train"].images.flags.writeable


DEEDS = ("added", "removed", "renamed", "written", "moved to another class", "replaced by an older file", "a document added")


@pytest.mark.parametrize("deed", DEEDS)
def test_every_change_of_a_source_is_seen(tmp_path, deed):
    source, home, said = album(tmp_path / "album"), tmp_path / "home", []
    cached(source, home, say=said.append)
    path = source / "train" / WORDS[1] / "00003.png"
    if deed == "added":
        shutil.copy2(path, path.with_name("new.png"))
    elif deed == "removed":
        path.unlink()
    elif deed == "renamed":
        path.rename(path.with_name("other.png"))
    elif deed == "written":
        path.write_bytes(path.read_bytes())
    elif deed == "moved to another class":
        path.rename(source / "train" / WORDS[0] / path.name)
    elif deed == "replaced by an older file":
        Image.fromarray(faces.load("test").images[0, ::4, ::4]).save(path)
        os.utime(path, (10**9, 10**9))
    else:
        (source / "notes.txt").touch()
    assert same(cached(source, home, say=said.append), source)
    assert len(said) == 2 and said[1].endswith(": the source has changed")
    assert same(cached(source, home, say=said.append), source) and len(said) == 2


def test_a_folder_of_caches_beside_a_csv(tmp_path):
    root, said = album(tmp_path / "data"), []
    rows = [f"{path.relative_to(root).as_posix()},{path.parent.name},{path.parent.parent.name}" for path in sorted(root.glob("*/*/*.png"))]
    (root / "faces.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    source, home = root / "faces.csv", root / "caches"
    for _ in range(3):
        assert same(cached(source, home, say=said.append), source)
    assert len(said) == 1
    (root / "faces.csv").write_text("\n".join(["path,label,split", *rows[1:]]) + "\n")
    data = cached(source, home, say=said.append)
    assert same(data, source) and len(said) == 2 and sum(map(len, data.values())) == len(rows) - 1
    with pytest.raises(DataError, match="would change the data that lies here"):
        cached(source, root / "train" / "fear", say=str)


def test_what_changes_the_data_has_a_cache_of_its_own(tmp_path):
    source, home, said = album(tmp_path / "album"), tmp_path / "home", []
    for options in ({}, {"image_size": 8}, {"image_size": 9}, {"quarantine": tmp_path / "out.csv"}):
        assert same(cached(source, home, say=said.append, **options), source, **options)
        assert same(cached(source, home, say=said.append, **options), source, **options)
    assert len(said) == len(list(home.glob("*.safetensors"))) == 4


def test_bad_links_and_pipes_are_no_reason_to_fail(tmp_path):
    """They are bad files as in `read`: a list when strict, left out under quarantine."""
    source, home = album(tmp_path / "album"), tmp_path / "home"
    folder = source / "train" / WORDS[0]
    (folder / "a.png").symlink_to("nowhere.png")
    (folder / "b.png").symlink_to("b.png")
    os.mkfifo(folder / "c.png")
    with pytest.raises(BadFiles) as error:
        cached(source, home, say=str)
    assert [verdict.kind for *_, verdict in error.value.bad] == ["dangling link", "dangling link", "no file"] and left(home) == []
    said: list[str] = []
    for _ in range(2):
        assert same(cached(source, home, quarantine=tmp_path / "out.csv", say=said.append), source, quarantine=tmp_path / "other.csv")
        assert (tmp_path / "out.csv").read_text().count("\n") == 4
    assert len(said) == 1


def test_a_split_of_which_nothing_is_left(tmp_path):
    """All training images stand in the test too: as `read` says it, no list of bad files."""
    source = album(tmp_path / "album", 4, 4)
    shutil.rmtree(source / "train")
    shutil.copytree(source / "test", source / "train")
    said = []
    for get in (lambda: read(source, "train", quarantine=tmp_path / "out.csv"),
                lambda: cached(source, tmp_path / "home", quarantine=tmp_path / "out.csv", say=str)):
        with pytest.raises(DataError) as error:
            get()
        said.append(str(error.value))
    assert said[0] == said[1] == "album: no usable image of the train split is left" and left(tmp_path / "home") == []


def test_names_that_are_patterns(tmp_path):
    """An unfinished file of a killed build is taken away, whatever the folder is called."""
    source, home = album(tmp_path / "faces [1]*?"), tmp_path / "home"
    cached(source, home, say=str)
    orphan, other = home / f".{the_file(home).name}.12345", home / ".another.safetensors.12345"
    for path in (orphan, other, the_file(home)):
        path.write_bytes(b"")
    assert same(cached(source, home, say=str), source) and left(home) == [other.name]


def test_a_source_that_is_written_to_while_it_is_read(tmp_path, monkeypatch):
    source, home = album(tmp_path / "album"), tmp_path / "home"
    go_through = cache.go_through

    def and_write(*args):
        (source / "train" / WORDS[0] / "late.txt").write_text("late")
        return go_through(*args)

    monkeypatch.setattr(cache, "go_through", and_write)
    with pytest.raises(DataError, match="has changed while it was read"):
        cached(source, home, say=str)
    assert left(home) == [] and not list(home.glob("*.safetensors"))


def test_no_cache_of_what_needs_none(tmp_path):
    with pytest.raises(DataError, match="needs no cache"):
        cached("faces", tmp_path, say=str)
    assert not list(tmp_path.glob("*.safetensors")) and left(tmp_path) == []


# --- what a source is ---

def linked(root: Path, *, to: Path) -> Path:
    """A folder whose splits are links to folders elsewhere."""
    root.mkdir()
    for split in ("train", "test"):
        (root / split).symlink_to(to / split)
    return root


@pytest.mark.parametrize("deed", ["added", "removed", "emptied"])
def test_changes_behind_links_to_folders_are_seen(tmp_path, deed):
    disk = album(tmp_path / "disk")
    source, said = linked(tmp_path / "data", to=disk), []
    cached(source, tmp_path / "home", say=said.append)
    victim = sorted((disk / "train" / "fear").iterdir())[0]
    if deed == "added":
        shutil.copy(victim, victim.with_name("new.png"))
    elif deed == "removed":
        victim.unlink()
    else:
        victim.write_bytes(b"")
        with pytest.raises(BadFiles):
            cached(source, tmp_path / "home", say=said.append)
        return
    assert same(cached(source, tmp_path / "home", say=said.append), source) and said[1].endswith("the source has changed")


def test_a_link_that_leads_elsewhere_is_another_source(tmp_path):
    source, said = linked(tmp_path / "data", to=album(tmp_path / "one")), []
    before = cached(source, tmp_path / "home", say=said.append)["train"].fingerprint()
    other = album(tmp_path / "other", first=40)
    for split in ("train", "test"):
        (source / split).unlink()
        (source / split).symlink_to(other / split)
    data = cached(source, tmp_path / "home", say=said.append)
    assert same(data, source) and data["train"].fingerprint() != before and len(said) == 2


def test_one_csv_under_two_links_is_two_sources(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\na.png,fear\nb.png,happy\n")
    for name, first in (("x", 0), ("y", 30)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "faces.csv").symlink_to(tmp_path / "list.csv")
        for file, image in zip("ab", faces.load("train").images[first:first + 2, ::4, ::4], strict=True):
            Image.fromarray(image).save(tmp_path / name / f"{file}.png")
    found = [cached(tmp_path / name / "faces.csv", tmp_path / "home", say=lambda line: None)["train"].fingerprint() for name in "xy"]
    assert found == [read(tmp_path / name / "faces.csv").fingerprint() for name in "xy"] and found[0] != found[1]


@pytest.mark.parametrize("deed", [lambda folder: folder.rename(folder.with_name("surprise2")), shutil.rmtree])
def test_a_folder_that_is_gone_is_a_change(tmp_path, deed):
    source, said = album(tmp_path / "album"), []
    extra = source / "train" / "anger"
    shutil.copytree(source / "train" / "fear", extra)
    cached(source, tmp_path / "home", say=said.append)
    shutil.rmtree(extra)
    assert same(cached(source, tmp_path / "home", say=said.append), source) and said[1].endswith("the source has changed")
    deed(source / "test" / "fear")
    try:
        assert same(cached(source, tmp_path / "home", say=said.append), source)
    except DataError as error:  # the same words as without a cache
        with pytest.raises(DataError) as plain:
            read(source, "train")
        assert str(error) == str(plain.value)


def test_a_right_that_is_given_back_is_a_change(tmp_path):
    source, said = album(tmp_path / "album"), []
    victim = next((source / "train" / "fear").iterdir())
    cached(source, tmp_path / "home", say=said.append)
    victim.chmod(0o600 if victim.stat().st_mode & 0o077 else 0o644)
    assert same(cached(source, tmp_path / "home", say=said.append), source) and said[1].endswith("the source has changed")


def test_a_file_that_comes_between_listing_and_reading(tmp_path, monkeypatch):
    """It stands in the stamp, so it has to stand in the list too."""
    source, said = album(tmp_path / "album"), []
    true = cache.stamp

    def late(*arguments):
        if not (source / "train" / "fear" / "late.png").exists():
            shutil.copy(next((source / "train" / "fear").iterdir()), source / "train" / "fear" / "late.png")
        return true(*arguments)

    monkeypatch.setattr(cache, "stamp", late)
    assert same(cached(source, tmp_path / "home", say=said.append), source)


def test_copies_of_test_and_validation_images_leave_the_cache(tmp_path):
    source = album(tmp_path / "album")
    shutil.copytree(source / "test", source / "valid")
    for path in (source / "valid").rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    shutil.copy(next((source / "valid" / "fear").iterdir()), source / "train" / "fear" / "v.png")
    shutil.copy(next((source / "test" / "fear").iterdir()), source / "train" / "fear" / "t.png")
    data = cached(source, tmp_path / "home", quarantine=tmp_path / "list.csv", say=lambda line: None)
    assert len(data["train"]) == 12 and data["train"].fingerprint() == read(source, "train", quarantine=tmp_path / "b.csv").fingerprint()
    assert {line.split(",")[1] for line in (tmp_path / "list.csv").read_text().splitlines()[1:]} == {"train/fear/v.png", "train/fear/t.png"}


def test_the_rule_and_the_classes_belong_to_the_key(tmp_path):
    """FERPlus by the strict rule never answers for the other one, nor eight classes for seven."""
    images = faces.load("train").images[:24, ::4, ::4]
    write_ferplus(tmp_path / "plus", {"train": (images[:16], np.arange(16) % 8), "test": (images[16:], np.arange(8))})
    table = tmp_path / "plus" / "FER2013Train" / "label.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join([",".join([rows[0].rsplit(",", 10)[0], "4,4,1,1,0,0,0,0,0,0"]), *rows[1:]]) + "\n")
    (tmp_path / "plus" / "fer2013new.csv").unlink()
    for options in ({}, {"rule": "argmax"}, {"num_classes": 7}, {"rule": "argmax", "num_classes": 7}):
        data = cached(tmp_path / "plus", tmp_path / "home", say=lambda line: None, **options)
        assert same(data, tmp_path / "plus", **options), options
    assert len(list((tmp_path / "home").glob("*.safetensors"))) == 4


def test_a_cache_in_a_folder_that_nobody_writes_to_opens(tmp_path, monkeypatch):
    source = album(tmp_path / "album")
    cached(source, tmp_path / "home", say=lambda line: None)

    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refused)
    said = []
    assert same(cached(source, tmp_path / "home", say=said.append), source) and said == []
