"""Every kind of odd or bad image has its verdict, by itself and in each layout: never another image in its place, never a guess."""

import contextlib
import csv
import errno
import io
import os
import resource
import signal
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from layout_writers import BORDER, WRITERS
from PIL import Image, ImageFile, ImageOps

from cucn_nb import faces
from cucn_nb.cache import cached
from cucn_nb.datasets import BadFiles, read
from cucn_nb.images import ACCEPTED, MOST_PIXELS, REFUSED, SMALLEST, DataError, decode, read_image
from cucn_nb.layouts import listings
from cucn_nb.survey import survey

NOBODY = 65534
draw = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def quiet_and_quick():
    """Nothing here may warn, or wait for a pipe."""
    def ring(*_):
        pytest.fail("this takes more than 30 seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(30)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def without_rights():
    """Act as somebody who may not read everything; skipped where root cannot."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(NOBODY)
    except OSError as error:
        pytest.skip(f"root cannot act as another user here ({error.strerror})")
    try:
        yield
    finally:
        os.seteuid(0)


# --- the kinds: each writer takes (path, pixels uint8 [H, W, 3]), makes the file, and gives the pixels that it stands for, or None if bad ---

def saved(path, image, **options):
    image.save(path, FORMAT[path.suffix], **options)


FORMAT = {".png": "PNG", ".jpg": "JPEG"}
PLAIN = {".png": {}, ".jpg": {"quality": 95}}


def as_pillow_shows(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken notes
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))


def nothing(path, pixels):
    path.touch()


def cut(path, pixels):
    saved(path, Image.fromarray(pixels))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_format(path, pixels):
    Image.fromarray(pixels).save(path, "BMP")


def web_page(path, pixels):
    path.write_text("<!DOCTYPE html>\n<html><title>404 Not Found</title></html>")


def one_pixel(path, pixels):
    saved(path, Image.fromarray(pixels[:1, :1]))


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth, colour, rows):
    """A PNG file by hand."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb(path, pixels, side=20_000):
    """Headers of 20,000 x 20,000 pixels."""
    if path.suffix == ".png":
        path.write_bytes(png(side, side, 8, 2, b""))
        return
    saved(path, Image.fromarray(pixels))
    data = bytearray(path.read_bytes())
    frame = data.find(b"\xff\xc0")  # start of frame: length, precision, height, width
    data[frame + 5:frame + 9] = struct.pack(">HH", side, side)
    path.write_bytes(data)


def no_numbers(path, pixels):
    Image.fromarray(np.full(pixels.shape[:2], np.nan, dtype=np.float32)).save(path, "TIFF")


def leads_nowhere(path, pixels):
    path.symlink_to("nowhere.png")


def leads_in_a_circle(path, pixels):
    path.symlink_to(path.name)


def pipe(path, pixels):
    os.mkfifo(path)


def moving(path, pixels):
    frames = [Image.fromarray(np.roll(pixels, shift, 0)) for shift in (0, 3)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def grey(path, pixels):
    saved(path, Image.fromarray(pixels).convert("L"), **PLAIN[path.suffix])
    return as_pillow_shows(path)


def inks(path, pixels):
    saved(path, Image.fromarray(pixels).convert("CMYK"), **PLAIN[path.suffix])
    return as_pillow_shows(path)


def deep_grey(path, pixels):
    deep = pixels[..., 0].astype(np.uint16) * 257 - (pixels[..., 0] // 2)  # up to half a step below
    saved(path, Image.fromarray(deep))
    return np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, 2)


def deep_colour(path, pixels):
    deep = (pixels.astype(">u2") << 8) + 99
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    path.write_bytes(png(pixels.shape[1], pixels.shape[0], 16, 2, rows))
    return pixels


def palette(path, pixels):
    image = Image.fromarray(pixels).quantize(64)
    saved(path, image)
    return np.asarray(image.convert("RGB"))


def faint_palette(path, pixels):
    image = Image.fromarray(pixels).quantize(64)
    saved(path, image, transparency=bytes(range(0, 256, 4)))
    return np.asarray(image.convert("RGB"))


def clear(path, pixels):
    image = Image.fromarray(pixels)
    image.putalpha(Image.fromarray(draw.integers(0, 256, pixels.shape[:2], dtype=np.uint8)))
    saved(path, image)
    return pixels


def on_its_side(path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right to view
    saved(path, Image.fromarray(np.rot90(pixels).copy()), exif=exif, **PLAIN[path.suffix])
    return np.rot90(as_pillow_shows(path), -1)


def broken_note(path, pixels):
    saved(path, Image.fromarray(pixels), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff" * 3, **PLAIN[path.suffix])
    return as_pillow_shows(path)


BAD = {  # kind -> (writer, what it is called)
    "zero bytes": (nothing, "empty"), "truncated": (cut, "truncated"), "wrong extension": (other_format, "wrong extension"),
    "web page": (web_page, "not an image"), "one pixel": (one_pixel, "too small"), "bomb": (bomb, "too large"),
    "nan tiff": (no_numbers, "pixel format"),
    "dangling link": (leads_nowhere, "dangling link"), "link to itself": (leads_in_a_circle, "dangling link"), "pipe": (pipe, "no file"),
    "animation": (moving, "several pictures"),
}
GOOD = {  # kind -> (writer, what it is called, extensions that can hold it)
    "grey": (grey, "grey", ".png .jpg"), "cmyk": (inks, "cmyk", ".jpg"), "16-bit grey": (deep_grey, "16-bit", ".png"),
    "16-bit colour": (deep_colour, "16-bit", ".png"), "palette": (palette, "palette", ".png"), "faint palette": (faint_palette, "palette", ".png"),
    "alpha": (clear, "alpha", ".png"), "rotated": (on_its_side, "rotated", ".png .jpg"), "broken exif": (broken_note, "rgb", ".jpg"),
}
some_pixels = draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)


# --- one file ---

@pytest.mark.parametrize("extension", FORMAT)
@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_by_name(tmp_path, kind, extension):
    write, name = BAD[kind]
    path = tmp_path / f"a{extension}"
    write(path, some_pixels)
    verdict, pixels = decode(path)
    assert (verdict.kind, verdict.accepted) == (name, False) and verdict.words.startswith(REFUSED[name]) and "\n" not in verdict.words
    assert (pixels is None) == (name != "wrong extension")
    if pixels is None:
        with pytest.raises(DataError, match=name) as error:
            read_image(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(("kind", "extension"), [(kind, extension) for kind in GOOD for extension in GOOD[kind][2].split()])
def test_odd_files_are_read_and_named(tmp_path, kind, extension):
    write, name, _ = GOOD[kind]
    path = tmp_path / f"a{extension}"
    expected = write(path, some_pixels)
    verdict, pixels = decode(path)
    assert (verdict.kind, verdict.words, verdict.size) == (name, ACCEPTED[name], (30, 20)) and verdict.accepted and len(verdict.sha256) == 64
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected) and np.array_equal(read_image(path), pixels)
    assert verdict.grey == (kind in ("grey", "16-bit grey"))


@pytest.mark.parametrize("extension", [".gif", ".bmp", ".tiff", ".webp", ".ppm"])
def test_wherever_a_file_of_another_format_is_cut(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    Image.fromarray(some_pixels).save(path)
    whole, good = path.read_bytes(), read_image(path)
    refused = 0
    for length in range(0, len(whole), 17):
        path.write_bytes(whole[:length])
        verdict, pixels = decode(path)
        refused += not verdict.accepted
        assert not verdict.accepted or np.array_equal(pixels, good), length
    assert refused >= len(whole) // 17 - 1


@pytest.mark.parametrize("extension", FORMAT)
def test_wherever_a_file_is_cut(tmp_path, extension):
    """It is refused, unless all pixels are there: the last bytes of a PNG file are checksums and an end mark."""
    path = tmp_path / f"a{extension}"
    saved(path, Image.fromarray(some_pixels))
    whole, good = path.read_bytes(), read_image(path)
    kinds = {}
    for length in [*range(0, len(whole) - 40, 13), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:length])
        verdict, pixels = decode(path)
        kinds[length] = verdict.kind
        assert not verdict.accepted or np.array_equal(pixels, good), length
    start = whole.find(b"IDAT" if extension == ".png" else b"\xff\xda")  # of the pixels
    refused = len(whole) - (20 if extension == ".png" else 0)
    assert kinds[0] == "empty" and set(kinds.values()) <= {"empty", "not an image", "truncated", "rgb"}
    assert {kind for length, kind in kinds.items() if start + 20 < length < refused} == {"truncated"}


def test_a_setting_of_others_changes_no_verdict(tmp_path, monkeypatch):
    cut(tmp_path / "a.jpg", some_pixels)
    cut(tmp_path / "a.png", some_pixels)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert decode(tmp_path / "a.jpg")[0].kind == decode(tmp_path / "a.png")[0].kind == "truncated" and ImageFile.LOAD_TRUNCATED_IMAGES is True


UPRIGHT = {  # the camera's note -> what it asks for
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}
FORMATS = ["L.png", "1.png", "LA.png", "RGB.png", "RGBA.png", "P.png", "CMYK.jpg", "YCbCr.jpg", "RGB.webp", "RGBA.webp", "RGB.bmp", "P.gif",
           "CMYK.tiff", "PA.tiff", "RGB.ppm", "I;16.tiff", "I;16.png"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_and_turn(tmp_path, kind):
    """What Pillow shows, turned as a camera noted it."""
    mode, _, extension = kind.partition(".")
    deep = mode == "I;16"
    photo = Image.fromarray(some_pixels[..., 0].astype(np.uint16) * 257) if deep else Image.fromarray(some_pixels).convert(mode)
    path = tmp_path / f"a.{extension}"
    photo.save(path)
    with Image.open(path) as plain:
        shown = Image.fromarray(some_pixels[..., 0]) if deep else (plain.convert("RGBA") if mode in ("P", "PA") else plain).convert("RGB")
    exif = Image.Exif()
    for turn in [1] if extension in ("bmp", "gif", "ppm") else UPRIGHT:  # those have no note
        exif[0x0112] = turn
        photo.save(path, **({"exif": exif} if turn > 1 else {}))
        verdict, pixels = decode(path)
        assert np.array_equal(pixels, UPRIGHT[turn](np.asarray(shown.convert("RGB")))), turn
        assert verdict.accepted and verdict.size == pixels.shape[1::-1]
        if not deep:
            assert (verdict.kind == "rotated") == (turn > 1) or mode in ("LA", "RGBA", "P", "PA", "CMYK")
            with Image.open(io.BytesIO(path.read_bytes())) as again:  # Pillow 13 forgets to turn an uncompressed file that it can map
                again.load()
                turned = ImageOps.exif_transpose(again)
                assert np.array_equal(pixels, (turned.convert("RGBA") if mode in ("P", "PA") else turned).convert("RGB"))


def grey_tiff(order, values, bits=16, meaning=1):
    """A grey TIFF file of 256 x 256 pixels by hand; meaning 0 is WhiteIsZero, 1 BlackIsZero, None is not said."""
    tags = [(256, 4, 256), (257, 4, 256), (258, 3, bits), (259, 3, 1), *([] if meaning is None else [(262, 3, meaning)]), (273, 4, 0), (277, 3, 1),
            (278, 4, 256), (279, 4, len(values))]
    tags = [(tag, kind, 8 + 2 + len(tags) * 12 + 4 if tag == 273 else value) for tag, kind, value in tags]
    lines = [struct.pack(f"{order}HHI", tag, kind, 1) + struct.pack(f"{order}{'I' if kind == 4 else 'HH'}", *([value] if kind == 4 else [value, 0]))
             for tag, kind, value in tags]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + b"".join(lines) + bytes(4) + values


@pytest.mark.parametrize("order", "<>")
def test_deep_grey_of_either_byte_order(tmp_path, order):
    """TIFF files by hand, with every value of 16 bits."""
    deep = np.arange(65536, dtype=f"{order}u2").reshape(256, 256)
    (tmp_path / "a.tif").write_bytes(grey_tiff(order, deep.tobytes()))
    verdict, pixels = decode(tmp_path / "a.tif")
    assert verdict.kind == "16-bit" and verdict.grey
    assert np.array_equal(pixels[..., 0], np.rint(deep / 257)) and (pixels == pixels[..., :1]).all()


@pytest.mark.parametrize(("bits", "meaning"), [(12, 1), (16, 0), (16, None)])
def test_deep_grey_that_would_come_out_dark_or_as_a_negative(tmp_path, bits, meaning):
    reason = "(12 bits of grey)" if bits == 12 else "from black to white"
    (tmp_path / "a.tif").write_bytes(grey_tiff("<", bytes(256 * 256 * bits // 8), bits, meaning))
    verdict, pixels = decode(tmp_path / "a.tif")
    assert verdict.kind == "pixel format" and reason in verdict.words and pixels is None


def test_a_film_of_many_pictures_is_refused_at_its_second(tmp_path):
    path = tmp_path / "a.gif"
    moving(path, some_pixels)
    data = path.read_bytes()
    end = data.rfind(b"\x3b")
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x4c\x01\x00"
    path.write_bytes(data[:end] + frame * 100_000 + data[end:])
    start = time.process_time()
    verdict, _ = decode(path)
    assert verdict.kind == "several pictures" and verdict.size == (30, 20) and time.process_time() - start < 0.3


def test_pages_of_a_tiff_file(tmp_path):
    pages = [Image.fromarray(some_pixels), Image.fromarray(some_pixels[:10])]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    verdict, _ = decode(tmp_path / "a.tif")
    assert verdict.kind == "several pictures" and verdict.size == (30, 20)


def test_of_an_mpo_file_the_first_picture_is_taken(tmp_path):
    views = [Image.fromarray(np.roll(some_pixels, shift, 0)) for shift in (0, 3)]
    views[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=views[1:])
    verdict, pixels = decode(tmp_path / "a.jpg")
    assert verdict.accepted and np.array_equal(pixels, as_pillow_shows(tmp_path / "a.jpg"))


# --- a bad moment of the machine ---


@pytest.mark.parametrize("where", ["os.stat", "builtins.open"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ETIMEDOUT])
def test_a_bad_moment_is_no_verdict(tmp_path, monkeypatch, where, number):
    path = tmp_path / "a.png"
    Image.fromarray(some_pixels).save(path)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(DataError) as error:
            decode(path)
    assert str(path) in str(error.value) and "try again" in str(error.value) and os.strerror(number) in str(error.value)
    assert decode(path)[0].accepted


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOENT, "missing"), (errno.ENOTDIR, "missing"), (errno.ENAMETOOLONG, "missing"),
                                              (errno.EPERM, "unreadable")])
def test_what_says_something_about_the_file_is_a_verdict(tmp_path, monkeypatch, number, kind):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("os.stat", fail)
        found = decode(tmp_path / "a.png")[0].kind
    assert found == kind


@pytest.mark.parametrize("where", [(Image, "open"), (ImageFile.ImageFile, "load"), (ImageOps, "exif_transpose")])
def test_too_little_memory_is_no_verdict(tmp_path, monkeypatch, where):
    Image.fromarray(some_pixels).save(tmp_path / "a.jpg")

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(*where, fail)
    with pytest.raises(MemoryError):
        decode(tmp_path / "a.jpg")


def test_a_decoder_without_memory_is_no_verdict(tmp_path, monkeypatch):
    saved(tmp_path / "a.png", Image.fromarray(some_pixels))

    def fail(*_, **__):
        raise OSError("out of memory error when reading image file")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(MemoryError):
        decode(tmp_path / "a.png")


def test_threads_do_not_change_the_setting_of_others_or_of_each_other(tmp_path, monkeypatch):
    """One thread is kept within a decoder; another begins and must wait, or the first would end with its setting."""
    cut(tmp_path / "a.png", some_pixels)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    within, go_on, order, kinds, load = threading.Event(), threading.Event(), [], {}, ImageFile.ImageFile.load

    def wait(image):
        order.append(threading.current_thread().name)
        within.set()
        assert go_on.wait(10)
        return load(image)

    def judge():
        kinds[threading.current_thread().name] = decode(tmp_path / "a.png")[0].kind

    monkeypatch.setattr(ImageFile.ImageFile, "load", wait)
    threads = [threading.Thread(target=judge, name=name) for name in ("one", "two")]
    threads[0].start()
    assert within.wait(10)
    threads[1].start()
    threads[1].join(0.3)
    assert order == ["one"]
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert kinds == {"one": "truncated", "two": "truncated"} and ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_smallest_side(tmp_path):
    for side, name in ((SMALLEST, "rgb"), (SMALLEST - 1, "too small")):
        Image.fromarray(some_pixels[:side]).save(tmp_path / "a.png")
        assert decode(tmp_path / "a.png")[0].kind == name and decode(tmp_path / "a.png")[0].size == (30, side)
        Image.fromarray(some_pixels).save(tmp_path / "b.png")
        assert decode(tmp_path / "b.png", (3, 4, side, 9))[0].kind == name


@pytest.mark.parametrize("box", [(30, 0, 9, 9), (0, 20, 9, 9), (-9, 0, 9, 9), (0, -9, 9, 9)])
def test_boxes_outside(tmp_path, box):
    Image.fromarray(some_pixels).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", box)[0].kind == "box outside"


def test_a_box_is_cut_from_the_upright_image_as_far_as_it_lies_within(tmp_path):
    on_its_side(tmp_path / "a.png", some_pixels)
    assert np.array_equal(decode(tmp_path / "a.png", (5, 2, 10, 11))[1], some_pixels[2:13, 5:15])
    assert np.array_equal(decode(tmp_path / "a.png", (-5, 10, 20, 10**30))[1], some_pixels[10:, :15])


@pytest.mark.parametrize("extension", [".png", ".jpg", ".gif"])
@pytest.mark.parametrize("side", [12_000, 20_000, 60_000])
def test_bombs_are_refused_at_once(tmp_path, extension, side):
    """Measured in a process of its own, whose memory is counted from zero."""
    path = tmp_path / f"a{extension}"
    if extension == ".gif":  # a small first picture, a giant second one
        moving(path, some_pixels)
        data = path.read_bytes()
        first = struct.pack("<BHHHH", 0x2C, 0, 0, 30, 20)
        second = data.find(struct.pack("<B", 0x2C), data.find(first) + 9)
        while struct.unpack("<H", data[second + 5:second + 7])[0] != 30:
            second = data.find(b"\x2c", second + 1)
        path.write_bytes(data[:second + 5] + struct.pack("<HH", side, side) + data[second + 9:])
    else:
        bomb(path, some_pixels, side)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            kind = decode(path)[0].kind
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            os.write(write_end, f"{kind},{grown},{time.process_time() - start}".encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        kind, grown, seconds = answer.read().split(",")
    os.waitpid(child, 0)
    assert side * side > MOST_PIXELS and kind == ("several pictures" if extension == ".gif" and kind != "too large" else "too large")
    assert int(grown) < 100 * 1024 and float(seconds) < 2


def test_what_may_not_be_read(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for folder in ("open", "closed"):
        Path(folder).mkdir()
        Image.fromarray(some_pixels).save(f"{folder}/a.png")
    Path("open/a.png").chmod(0)
    Path("closed").chmod(0)
    try:
        with without_rights():
            kinds = [decode(name)[0].kind for name in ("open/a.png", "closed/a.png", "open/b.png", "open")]
    finally:
        Path("closed").chmod(0o755)
    assert kinds == ["unreadable", "unreadable", "missing", "no file"] and decode("closed/a.png")[0].accepted


def test_a_folder_and_names_that_no_file_has(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert decode(tmp_path / "a.png")[0].kind == "no file" and decode(tmp_path / "a.png" / "b.png")[0].kind == "missing"
    Image.fromarray(some_pixels).save(tmp_path / "c.png")
    assert decode(tmp_path / "c.png" / "b.png")[0].kind == "missing" and decode(tmp_path / ("x" * 300))[0].kind == "missing"
    assert not decode(str(tmp_path / "a\0b.png"))[0].accepted


def test_extensions(tmp_path):
    for name, accepted in (("a.PNG", True), ("a", True), ("a.jpeg", False), ("a.txt", False), ("a.png.gif", False), ("photo no. 12", True),
                           ("dr. who.jpg", False), ("a.jpg ", False)):
        Image.fromarray(some_pixels).save(tmp_path / name, "PNG")
        verdict, pixels = decode(tmp_path / name)
        assert verdict.accepted == accepted and (accepted or verdict.kind == "wrong extension") and np.array_equal(pixels, some_pixels)


# --- the same in every layout ---

SIDE = 32


@pytest.fixture(scope="module")
def some_faces():
    """{split: (faces [n, 32, 32, 3], labels)}: other faces in each split, two of a class in train and one elsewhere."""
    images = faces.load("test").images[:, ::2, ::2]
    assert images.shape[1:3] == (SIDE, SIDE)
    return {"train": (images[:16], np.arange(16) % 8), "valid": (images[16:24], np.arange(8)), "test": (images[24:32], np.arange(8))}


class Written:
    """A layout on disk, and what is read of it."""

    def __init__(self, layout, root, given):
        writer, splits, contempt, self.lossless = WRITERS[layout]
        self.layout, self.root = layout, root
        kept = {split: labels < (8 if contempt else 7) for split, (_, labels) in given.items()}
        self.given = {split: (given[split][0][kept[split]], given[split][1][kept[split]]) for split in splits}
        self.paths = writer(root, self.given)
        self.path = root / "faces.csv" if layout == "csv" else root
        self.before = {split: read(self.path, split) for split in splits}
        self.listing = listings(self.path)["train"]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory, some_faces):
    return {layout: Written(layout, tmp_path_factory.mktemp("layouts") / "data", some_faces) for layout in WRITERS}


def same(data, other, index):
    """Do two data sets agree, where the second is taken at some positions? Grey counts as three equal channels."""
    want = other.subset(index)
    pixels = [d.images.expand(-1, 3, -1, -1) for d in (data, want)]
    extras = [(d.labels.tolist(), d.sources, d.classes, d.vote_names, None if d.votes is None else d.votes.tolist(),
               None if d.identity is None else d.identity.tolist()) for d in (data, want)]
    return bool((pixels[0] == pixels[1]).all()) and extras[0] == extras[1]


@pytest.mark.parametrize("layout", WRITERS)
def test_what_was_written_is_read_and_cached(layout, layouts, tmp_path):
    """Faces, labels, splits, votes and people come back: exactly from PNG files, as Pillow shows them from JPEG files."""
    written = layouts[layout]
    said = []
    kept = cached(written.path, tmp_path / "cache", say=said.append)
    assert list(kept) == [split for split in ("train", "valid", "test") if split in written.paths] and len(said) == 1
    for split, (images, labels) in written.given.items():
        data = written.before[split]
        order = [written.paths[split].index(source) for source in data.sources]
        assert sorted(order) == list(range(len(labels))) and data.labels.tolist() == labels[order].tolist() and data.split == split
        for i, source in zip(order, data.sources, strict=True):
            shown = as_pillow_shows(written.root / source) if not written.lossless else images[i]
            shown = np.asarray(Image.fromarray(shown).convert("L").convert("RGB")) if layout == "ferplus" else shown
            found = data.images[data.sources.index(source)].expand(3, -1, -1).permute(1, 2, 0).numpy()
            assert np.array_equal(found, shown), source
        assert (data.votes is not None) == (layout == "ferplus") and (data.identity is not None) == (layout == "csv")
        if data.votes is not None:
            assert data.votes.argmax(1).tolist() == data.labels.tolist() and (data.votes.sum(1) == 10).all()
        if data.identity is not None:
            people = [i % 5 for i in order]  # the same number for the same one
            assert len(set(zip(people, data.identity.tolist(), strict=True))) == len(set(data.identity.tolist())) == len(set(people))
        again = kept[split]
        assert again.fingerprint() == data.fingerprint() and again.images.shape == data.images.shape
        assert (again.notes, again.manifest, again.name) == (data.notes, data.manifest, data.name)
        again_images = np.array(again.images)
        assert np.array_equal(again_images, data.images) and again.sources == data.sources and again.vote_names == data.vote_names
        assert (again.votes is None) == (data.votes is None) and (again.votes is None or bool((again.votes == data.votes).all()))
        assert (again.identity is None) == (data.identity is None) and (again.identity is None or bool((again.identity == data.identity).all()))


@contextlib.contextmanager
def replaced(written, i, write):
    """The file of training image `i` is written anew; afterwards it is as it was. Gives what `write` gave."""
    path = written.root / written.before["train"].sources[i]
    good = path.read_bytes()
    whole = as_pillow_shows(path)
    path.unlink()
    try:
        yield write(path, whole)
    finally:
        path.unlink()
        path.write_bytes(good)


def left_out(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def check_refusal(written, i, name, tmp_path):
    """Strict names exactly the bad file; quarantine leaves exactly it out, and lists it; a survey reports it."""
    before = written.before["train"]
    source, label = before.sources[i], before.classes[before.labels[i]]
    with pytest.raises(BadFiles) as error:
        read(written.path, "train")
    assert [(split, file, word, verdict.kind) for split, file, word, verdict in error.value.bad] == [("train", source, label, name)]
    assert source in str(error.value) and name in str(error.value) and "\n" not in str(error.value)
    rest = [k for k in range(len(before)) if k != i]
    data = read(written.path, "train", quarantine=tmp_path / "out.csv")
    assert same(data, before, rest) and data.notes[-1] == f"1 file(s) left out: 1 {name}"
    gone = (before.counts - data.counts).tolist()
    assert sum(gone) == 1 and gone[before.labels[i]] == 1
    assert [row[:4] for row in left_out(tmp_path / "out.csv")] == [("train", source, label, name)]
    for split, other in written.before.items():
        if split != "train":
            assert read(written.path, split).fingerprint() == other.fingerprint()
    found = survey(written.path)
    assert [(entry.path, entry.verdict) for entry in found.manifest if entry.verdict in REFUSED] == [(source, name)]
    assert found.listed["train"] == tuple(before.counts.tolist()) and found.given["train"] == tuple(data.counts.tolist()) and source in str(found)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("layout", WRITERS)
def test_bad_files_in_a_layout(layout, kind, layouts, tmp_path):
    written = layouts[layout]
    i = list(BAD).index(kind) % len(written.before["train"])
    write, name = BAD[kind]
    name = "box outside" if (layout, kind) == ("affectnet csv", "one pixel") else name  # the box of the face is looked for first
    with replaced(written, i, write):
        check_refusal(written, i, name, tmp_path)
    assert same(read(written.path, "train"), written.before["train"], range(len(written.before["train"])))


@pytest.mark.parametrize(("layout", "kind"), [(layout, kind) for layout in WRITERS for kind in GOOD
                                              if (".jpg" if not WRITERS[layout][3] else ".png") in GOOD[kind][2]])
def test_odd_files_in_a_layout(layout, kind, layouts, tmp_path):
    written = layouts[layout]
    before = written.before["train"]
    i = list(GOOD).index(kind) % len(before)
    write, name, _ = GOOD[kind]
    with replaced(written, i, write) as whole:
        data = read(written.path, "train")
        (x, y), side = BORDER if layout == "affectnet csv" else (0, 0), SIDE
        found = data.images[i].expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert np.array_equal(found, whole[y:y + side, x:x + side])
        rest = [k for k in range(len(before)) if k != i]
        assert same(data.subset(rest), before, rest) and data.counts.equal(before.counts)
        entry = next(entry for entry in survey(written.path).manifest if entry.path == before.sources[i])
        assert (entry.verdict, entry.width, entry.height) == (name, SIDE, SIDE)
    read(written.path, "train", quarantine=tmp_path / "out.csv")
    assert left_out(tmp_path / "out.csv") == []


@pytest.mark.parametrize("layout", WRITERS)
def test_files_that_may_not_be_read_in_a_layout(layout, some_faces, tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)
    written = Written(layout, Path("data"), some_faces)
    (written.root / written.before["train"].sources[3]).chmod(0)
    with without_rights():
        check_refusal(written, 3, "unreadable", Path("."))


IN_PLACE_OF_AN_IMAGE = {  # a folder of its name: what the layout itself says
    "class folders": "a folder inside a class folder", "raf-db": "is missing (1 of", "raf-db folders": "a folder inside a class folder",
    "affectnet csv": "is missing (1 of", "affectnet npy": None, "affectnet folders": "a folder inside a class folder", "ferplus": "is missing (1 of",
    "sfew": "a folder inside a class folder", "csv": "is missing (1 of"}


@pytest.mark.parametrize("layout", WRITERS)
def test_a_folder_in_place_of_an_image(layout, layouts, tmp_path):
    written = layouts[layout]
    source = written.before["train"].sources[2]
    path = written.root / source
    good = path.read_bytes()
    path.unlink()
    path.mkdir()
    try:
        if IN_PLACE_OF_AN_IMAGE[layout] is None:
            check_refusal(written, 2, "no file", tmp_path)
        else:
            with pytest.raises(DataError) as error:
                read(written.path, "train", quarantine=tmp_path / "out.csv")
            assert source in str(error.value) and IN_PLACE_OF_AN_IMAGE[layout] in str(error.value) and not (tmp_path / "out.csv").exists()
    finally:
        path.rmdir()
        path.write_bytes(good)


def test_all_bad_files_are_named_at_once(layouts, tmp_path):
    """Five of them; the message is short, the error has all."""
    written = layouts["class folders"]
    before = written.before["train"]
    with contextlib.ExitStack() as stack:
        for i, kind in zip((1, 4, 5, 9, 12), BAD, strict=False):
            stack.enter_context(replaced(written, i, BAD[kind][0]))
        with pytest.raises(BadFiles) as error:
            read(written.path, "train")
        assert [file for _, file, *_ in error.value.bad] == [before.sources[i] for i in (1, 4, 5, 9, 12)]
        assert "5 of 16 image file(s)" in str(error.value) and "and 2 more" in str(error.value) and len(str(error.value)) < 600
        assert same(read(written.path, "train", quarantine=tmp_path / "out.csv"), before, [i for i in range(16) if i not in (1, 4, 5, 9, 12)])
    assert len(left_out(tmp_path / "out.csv")) == 5


def test_strange_names_stay_one_short_line_and_can_be_listed(tmp_path):
    """A line end, quotes, and on Linux bytes that are no UTF-8."""
    folder = tmp_path / "data" / "happy"
    folder.mkdir(parents=True)
    Image.fromarray(some_pixels).save(folder / "good.png")
    names = ['a\n"b", c.png', "a\rb.png", "x" * 200 + ".png", os.fsdecode(b"\xff\xfe.png")]
    for name in names:
        (folder / name).touch()
    with pytest.raises(BadFiles) as error:
        read(tmp_path / "data", image_size=8)
    assert str(error.value).isprintable() and len(str(error.value)) < 600 and "and 1 more" in str(error.value)
    assert {file for _, file, *_ in error.value.bad} == {f"happy/{name}" for name in names}
    assert len(read(tmp_path / "data", image_size=8, quarantine=tmp_path / "out.csv")) == 1
    with open(tmp_path / "out.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {f"happy/{name}" for name in names}
