"""The reader of pictures: bit depths, transparency, orientation, file types; unreadable files; no shared memory."""

from common.cli import RunError, UsageError

import os
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from torchvision.transforms import v2

from common import datasets
from common.datasets import load, pictures
from common.datasets.pictures import Unreadable, extensions, read_picture
from common.datasets.stream import Batch
from common.pool import read_pool

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def read(path, mode="RGB"):
    return np.asarray(read_picture(path, mode))


def saved(path, pixels, mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


# ---- values


def test_ordinary_pictures_keep_their_values_to_the_bit(tmp_path):
    """RGB, grey, palette, JPEG, CMYK: as Pillow's own conversion gives them."""
    x = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    made = [
        saved(tmp_path / "rgb.png", x), saved(tmp_path / "grey.png", x[..., 0]), saved(tmp_path / "one.png", x[..., 0], "1"),
        saved(tmp_path / "palette.png", Image.fromarray(x).quantize(50)), saved(tmp_path / "rgb.jpg", x), saved(tmp_path / "c.jpg", x, "CMYK"),
        saved(tmp_path / "palette.gif", Image.fromarray(x).quantize(50)), saved(tmp_path / "ycbcr.tif", x, "YCbCr"), saved(tmp_path / "a.bmp", x),
    ]  # fmt: skip
    for path in made:
        with Image.open(path) as image:
            assert np.array_equal(read(path), np.asarray(image.convert("RGB"))), path
    assert np.array_equal(read(made[0]), x) and np.array_equal(read(made[1], "L"), x[..., 0])


def test_a_folder_is_resized_by_pillow_as_ever(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(8):
            saved(tmp_path / name / f"{i}.png", rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    for workers in (0, 3):
        data = load(f"folder:{tmp_path}", img_size=70, workers=workers)
        by_hand = v2.Compose([v2.Resize(80), v2.CenterCrop(70), v2.PILToTensor()])
        assert data.crop_from == 80
        for path, x in zip(data.train.paths, data.train.x, strict=True):
            assert torch.equal(x, by_hand(Image.open(tmp_path / path).convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big.tif", "a.jp2", "a.pgm"])
def test_16_bits_are_scaled_by_their_range(name, tmp_path):
    values = np.array([[0, 128, 129, 257, 1000, 32768, 65407, 65535]], dtype=np.uint16).repeat(8, 0)
    if name == "big.tif":
        big_endian_tiff(tmp_path / name, values)
    elif name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        saved(tmp_path / name, values)
    assert read(tmp_path / name)[0, :, 0].tolist() == [0, 0, 1, 1, 4, 128, 255, 255]
    assert read(tmp_path / name, "L").shape == (8, 8)


def big_endian_tiff(path, values, bits=16, photometric=1, sample_format=1, order=">"):
    """An uncompressed TIFF by hand."""
    h, w = values.shape
    tags = [
        (256, w),
        (257, h),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8 + 2 + 12 * 9 + 4),
        (278, h),
        (279, values.nbytes),
        (339, sample_format),
    ]
    entries = b"".join(struct.pack(f"{order}HHII" if v > 65535 else f"{order}HHIHxx", t, 4 if v > 65535 else 3, 1, v) for t, v in tags)
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, len(tags)) + entries + struct.pack(f"{order}I", 0)
    path.write_bytes(head + values.tobytes() if order == "<" else head + values.astype(values.dtype.newbyteorder(">")).tobytes())


def test_every_mode_in_which_pillow_gives_16_bits(tmp_path, monkeypatch):
    """Older Pillow opens 16-bit PNG in mode I; TIFF in I;16 or I;16B; 12-bit and signed ones, white as zero, one transparent value."""
    values = np.array([[0, 257, 65535]], dtype=np.int32)
    for kind in ("PNG", "PPM"):
        old = Image.fromarray(values)
        old.format = kind
        assert np.asarray(pictures.to_eight_bits(old)).tolist() == [[0, 1, 255]]
    for mode in ("I;16", "I;16L", "I;16B"):
        data = values.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
        assert np.asarray(pictures.to_eight_bits(Image.frombytes(mode, (3, 1), data))).tolist() == [[0, 1, 255]]
    big_endian_tiff(tmp_path / "white.tif", np.array([[0, 65535, 257]], np.uint16), photometric=0, order="<")
    assert read(tmp_path / "white.tif")[0, :, 0].tolist() == [255, 0, 254]
    big_endian_tiff(tmp_path / "signed.tif", np.array([[0, 32767, 16384]], np.int16), sample_format=2)
    assert read(tmp_path / "signed.tif")[0, :, 0].tolist() == [0, 255, 128]
    big_endian_tiff(tmp_path / "negative.tif", np.array([[0, -5, 16384]], np.int16), sample_format=2)
    with pytest.raises(Unreadable, match="negative pixel values"):
        read(tmp_path / "negative.tif")
    big_endian_tiff(tmp_path / "12.tif", np.frombuffer(bytes([0x00, 0x0F, 0xFF]), np.uint8)[None], bits=12, order="<")
    content = bytearray((tmp_path / "12.tif").read_bytes())
    content[18:20] = struct.pack("<H", 2)  # the width: two pixels of 12 bits in three bytes
    twelve = tmp_path / "12.tif"
    twelve.write_bytes(content)
    assert read(twelve)[0, :, 0].tolist() == [0, 255]
    key = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    key.save(tmp_path / "key.png", transparency=0)
    key.info["transparency"] = 0
    assert np.asarray(pictures.to_eight_bits(key)).tolist() == [[255, 1, 255]]


def test_16_bit_colour_is_scaled(tmp_path):
    x = np.array([[[0, 32768, 65535]]], dtype=">u2")
    body = b"\0" + x.tobytes()

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    big = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(big)
    assert read(tmp_path / "a.png").tolist() == [[[0, 128, 255]]]


def test_32_bits_are_scaled_or_refused_and_floats_refused(tmp_path):
    values = np.array([[0, 2**30, 2**31 - 1]], dtype=np.int32)
    assert read(saved(tmp_path / "a.tif", values))[0, :, 0].tolist() == [0, 128, 255]
    big_endian_tiff(tmp_path / "unsigned.tif", np.array([[0, 2**31, 2**32 - 1]], np.uint32), bits=32, order="<")
    assert read(tmp_path / "unsigned.tif")[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(Unreadable, match=r"^uses less than 1/255 of the range of 32-bit integers; convert it to 8 or 16 bits$"):
        read(saved(tmp_path / "small.tif", np.array([[0, 255, 65535]], dtype=np.int32)))
    with pytest.raises(Unreadable, match="float pixels, whose range is not known; convert it to 8 or 16 bits"):
        read(saved(tmp_path / "float.tif", np.array([[0, 0.5, 1]], dtype=np.float32)))


def test_what_is_transparent_is_white(tmp_path):
    ink = np.zeros((1, 3, 4), np.uint8)
    ink[0, :, :3], ink[0, :, 3] = (10, 20, 30), (0, 128, 255)
    want = [[255, 255, 255], [132, 137, 142], [10, 20, 30]]
    for name in ("rgba.png", "rgba.tif", "rgba.webp", "rgba.tga"):
        got = read(saved(tmp_path / name, ink, **({"lossless": True, "exact": True} if "webp" in name else {})))[0]
        assert np.abs(got.astype(int) - want).max() <= 1 and got[0].tolist() == want[0] and got[2].tolist() == want[2], name
    la = Image.merge("LA", [Image.new("L", (3, 1), 10), Image.fromarray(ink[..., 3])])
    assert read(saved(tmp_path / "la.png", la))[0, :, 0].tolist() == [255, 132, 10] == read(tmp_path / "la.png", "L")[0].tolist()
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1, 1])
    assert read(saved(tmp_path / "p.png", palette, transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60], [40, 50, 60]]
    assert read(saved(tmp_path / "p.gif", palette, transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60], [40, 50, 60]]
    pa = palette.convert("PA")
    pa.putalpha(Image.fromarray(np.array([[0, 255, 255]], np.uint8)))
    assert np.asarray(pictures.on_white(pa, "RGB"))[0].tolist() == [[255, 255, 255], [40, 50, 60], [40, 50, 60]]
    colour_key = saved(tmp_path / "key.png", ink[..., :3], transparency=(10, 20, 30))
    assert (read(colour_key) == 255).all()
    opaque = np.random.default_rng(0).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    opaque[..., 3] = 255
    assert np.array_equal(read(saved(tmp_path / "opaque.png", opaque)), opaque[..., :3])


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "16.png"])
def test_exif_orientation_is_applied(name, tmp_path):
    """A picture whose first row is dark, stored as each orientation says, is upright again."""
    upright = np.full((16, 32), 200, np.uint8)
    upright[:8, :16] = 20
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, 3)}  # fmt: skip
    for k, x in stored.items():
        x = np.ascontiguousarray(x)
        image, exif = Image.fromarray(x.astype(np.uint16) * 257 if name == "16.png" else x), Image.Exif()
        exif[274] = k
        image.save(tmp_path / name, exif=exif, **({"lossless": True} if "webp" in name else {"quality": 100} if "jpg" in name else {}))
        got = read(tmp_path / name)[..., 0].astype(int)
        assert got.shape == (16, 32) and np.abs(got - upright).max() < 12, (name, k)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_does_no_harm(tmp_path):
    saved(tmp_path / "a.jpg", RAMP, exif=b"Exif\0\0MM\0*\0\0\xff\xff\x12\x34")
    assert read(tmp_path / "a.jpg").shape == (16, 16, 3)


# ---- file types


def test_every_type_that_pillow_decodes_is_read(tmp_path):
    wanted = {".png", ".jpg", ".jpeg", ".jfif", ".gif", ".bmp", ".webp", ".avif", ".jp2", ".tga", ".tif", ".tiff", ".ppm", ".qoi", ".ico"}
    assert wanted <= extensions() and not extensions() & {".pdf", ".eps", ".ps", ".mpg", ".h5", ".svg", ".heic", ".txt"}
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        for e in ("png", "JPG", "jfif", "gif", "avif", "jp2", "tga", "WEBP", "bmp", "tiff", "ppm", "qoi"):
            saved(
                tmp_path / name / f"a.{e}",
                rng.integers(0, 60, (16, 16, 3), dtype=np.uint8) + np.uint8(150 * label),
                format={"jfif": "jpeg", "JPG": "jpeg"}.get(e),
            )
    data = load(f"folder:{tmp_path}", img_size=16)
    assert len(data.train) + len(data.test) == 24
    for part in (data.train, data.test):
        bright = part.x.float().flatten(1).mean(1) > 110
        assert torch.equal(bright.long(), part.y)


# ---- unreadable files


def broken_folder(root, n=10):
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(n):
            saved(root / name / f"{i}.png", np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    whole = (root / "a" / "0.png").read_bytes()
    (root / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
    (root / "a" / "2.png").write_bytes(b"")
    (root / "b" / "3.png").write_bytes(b"<html>not a picture</html>")


@pytest.mark.parametrize("streamed, workers", [(False, 0), (False, 2), (True, 0), (True, 2)])
def test_unreadable_pictures_are_named_in_one_line_or_left_out(streamed, workers, tmp_path, monkeypatch, capsys):
    broken_folder(tmp_path / "mine")
    name = f"folder:{tmp_path / 'mine'}"
    if streamed:
        monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    with pytest.raises(UsageError) as e:
        load(name, img_size=12, workers=workers)
    line = str(e.value)
    assert (
        "a/2.png (empty)" in line and "b/3.png (not an image that Pillow can read)" in line and "\n" not in line and "Traceback" not in line
    )
    if not streamed:  # the pixels are read
        assert "3 of 20 images cannot be read: " in line and "a/1.png (truncated)" in line
    assert line.endswith("remove them, or use --skip_broken to leave them out") and len(line) < 400
    data = load(name, img_size=12, workers=workers, skip_broken=True)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "3 of 20 images cannot be read and are left out: " in said[0] and "a/1.png (truncated)" in said[0]
    assert len(data.train) + len(data.test) == 17 == len({*data.train.paths, *data.test.paths}) and " 17 " not in said[1]
    assert f"{len(data.train)} training and {len(data.test)} test images" in said[1]
    (tmp_path / "mine/a/1.png").unlink(), (tmp_path / "mine/a/2.png").unlink(), (tmp_path / "mine/b/3.png").unlink()
    clean = load(name, img_size=12, workers=workers)
    assert clean.identity() == data.identity() and clean.train.paths == data.train.paths
    if streamed:
        for part in (clean, data):
            part.x = torch.cat([x for x, _ in part.train.stream.loader(4, False, "none")])
        assert torch.equal(clean.x, data.x)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_picture_of_a_streamed_set_ends_the_pass_in_one_line(workers, tmp_path, monkeypatch):
    broken_folder(tmp_path / "mine")
    (tmp_path / "mine/a/2.png").unlink(), (tmp_path / "mine/b/3.png").unlink()
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    data = load(f"folder:{tmp_path / 'mine'}", img_size=12, workers=workers)
    part = data.train if "a/1.png" in data.train.paths else data.test
    for shuffle in (False, True):
        with pytest.raises(RunError) as e:
            list(part.stream.loader(100, shuffle, "none"))
        assert str(e.value) == (
            f"1 of {len(part)} images cannot be read: a/1.png (truncated); remove it, or use --skip_broken to leave it out"
        )


def test_five_are_named_and_the_others_counted(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(4):
            (tmp_path / name / f"{i}.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"8 of 8 images cannot be read: (\w/\d.png \(empty\), ){4}\w/\d.png \(empty\) and 3 more; remove"):
        load(f"folder:{tmp_path}")
    with pytest.raises(UsageError, match="no training image of a, b can be read"):
        load(f"folder:{tmp_path}", skip_broken=True)


def test_forbidden_and_oversized_pictures_and_dangling_links(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", RAMP)
    with monkeypatch.context() as m:
        m.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(Unreadable, match="^more than 200 pixels$"):
            read_picture(path)
        with pytest.raises(Unreadable, match="^more than 200 pixels$"):
            pictures.check_header(path)

    def forbidden(*a, **k):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(Unreadable, match="^a link to a file that does not exist$"):
        read_picture(tmp_path / "gone.png")
    monkeypatch.setattr(Image, "open", forbidden)
    with pytest.raises(Unreadable, match="^no permission$"):
        read_picture(path)


# ---- shared memory


def test_no_shared_memory_is_used(tmp_path, monkeypatch, capsys):
    """Docker gives /dev/shm 64 MB: worker processes send their batches through pipes, whatever there is."""
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(10):
            saved(tmp_path / name / f"{i}.png", np.full((8, 8, 3), 10 * i + 100 * (name == "b"), np.uint8))

    def full(*a, **k):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    for method in ("_new_using_fd_cpu", "_new_using_filename_cpu", "_share_fd_cpu_", "_share_filename_cpu_"):
        monkeypatch.setattr(torch.UntypedStorage, method, full)
    whole = load(f"folder:{tmp_path}", img_size=8, workers=2)
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    data = load(f"folder:{tmp_path}", img_size=8, workers=2)
    x, i = (torch.cat(side) for side in zip(*data.train.stream.loader(3, False, "none"), strict=True))
    assert torch.equal(x, whole.train.x) and i.tolist() == list(range(len(x)))
    x, i = (torch.cat(side) for side in zip(*data.train.stream.loader(3, True, "none"), strict=True))
    assert torch.equal(x, whole.train.x[i])


def test_without_worker_processes_this_process_reads(tmp_path, monkeypatch, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            saved(tmp_path / name / f"{i}.png", np.full((8, 8, 3), 10 * i, np.uint8))
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    data = load(f"folder:{tmp_path}", img_size=8, workers=2)
    torch.manual_seed(0)
    want = [i.tolist() for _, i in data.train.stream.loader(3, True, "none")]

    def none():
        torch.empty((), dtype=torch.int64).random_()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.datasets.stream.Lock", none)
    capsys.readouterr()
    torch.manual_seed(0)
    assert [i.tolist() for _, i in data.train.stream.loader(3, True, "none")] == want
    assert capsys.readouterr().out == "worker processes cannot start (No space left on device); this process reads the images\n"


def test_a_killed_worker_process_is_one_line(tmp_path, monkeypatch):
    for name in "ab":
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            saved(tmp_path / name / f"{i}.png", RAMP)
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    stream = load(f"folder:{tmp_path}", img_size=8, workers=1).train.stream
    monkeypatch.setattr("common.datasets.stream.read_picture", lambda path: os._exit(9))
    with pytest.raises(RunError, match="^a process that reads images was killed, probably for lack of memory; use fewer --workers$"):
        list(stream.loader(2, False, "none"))


def test_batches_are_pinned_as_tensors(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    x, i = Batch([(np.full((3, 2, 2), k, np.uint8), k) for k in (4, 2)]).pin_memory().tensors()
    assert x[:, 0, 0, 0].tolist() == i.tolist() == [4, 2] and x is pinned[0] and i is pinned[1]


def test_batches_in_order_go_by_bytes(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            saved(tmp_path / name / f"{i}.png", np.full((8, 8, 3), 10 * i, np.uint8))
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    stream = load(f"folder:{tmp_path}", img_size=8, workers=0).train.stream
    monkeypatch.setattr("common.datasets.stream.BATCH_BYTES", 3 * 64 * 4)
    assert {len(i) for _, i in stream.loader(500, False, "none")} <= {4, len(stream.index) % 4}
    assert replace(stream, size=224).loader(500, False, "none").options["batch_size"] == 1
    monkeypatch.setattr("common.datasets.stream.BATCH_BYTES", 16e6)
    assert replace(stream, size=224).loader(500, False, "none").options["batch_size"] * 3 * 224**2 <= 16e6


# ---- the same reader elsewhere


def test_few_shot_sets_and_pools_have_the_same_reader(tmp_path):
    ink = np.zeros((84, 84, 4), np.uint8)  # transparent black
    root = tmp_path / "miniImageNet"
    (root / "images").mkdir(parents=True)
    for i in range(10):
        saved(root / "images" / f"{i}.png", ink if i else np.full((84, 84), 65535, np.uint16))
    (root / "test.csv").write_text("filename,label\n" + "".join(f"{i}.png,c{i % 2}\n" for i in range(10)))
    images = datasets.novel("miniImageNet", "test", tmp_path)
    assert (images.x == 255).all() and images.x.shape == (10, 3, 80, 80) and images.paths is None and len(images.hash) == 12
    (root / "images" / "4.png").write_bytes(b"")
    with pytest.raises(RunError, match=r"1 of 10 images cannot be read: images/4.png \(empty\); remove it, or use --skip_broken"):
        datasets.novel("miniImageNet", "test", tmp_path)
    assert datasets.novel("miniImageNet", "test", tmp_path, skip_broken=True).y.tolist() == [0, 1, 0, 1, 1, 0, 1, 0, 1]
    pool = tmp_path / "pool"
    pool.mkdir()
    saved(pool / "a.png", ink[:8, :8]), saved(pool / "b.GIF", RAMP[:8, :8]), (pool / "._a.png").write_bytes(b"x")
    x = pictures.read_pool_folder(pool, (3, 8, 8))
    assert (x[0] == 255).all() and x.shape == (2, 3, 8, 8) and np.array_equal(x[1, 0], RAMP[:8, :8])
    assert np.array_equal(read_pool(pool, (3, 8, 8))[1], x[1])
    (pool / "c.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 3 images cannot be read: c.png \(empty\)"):
        pictures.read_pool_folder(pool, (3, 8, 8))


def test_one_channel(tmp_path, monkeypatch):
    """A colour folder as grey, in memory and streamed: equal; a grey picture keeps its values."""
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cow"):
        (tmp_path / name).mkdir()
        for i in range(6):
            saved(tmp_path / name / f"{i}.png", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) if i else RAMP[:8, :8])
    colour, grey = (load(f"folder:{tmp_path}", img_size=8, channels=c) for c in (0, 1))
    assert (colour.shape, grey.shape, load(f"folder:{tmp_path}", channels=3).shape[0]) == ((3, 8, 8), (1, 8, 8), 3)
    k = next(i for i, p in enumerate(grey.train.paths) if "/0" not in p)
    assert (grey.train.x[k].int() - rgb_to_grayscale(colour.train.x[k]).int()).abs().max() <= 1
    k = next(i for i, p in enumerate(grey.train.paths) if "/0" in p)
    assert np.array_equal(grey.train.x[k, 0], RAMP[:8, :8])
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    data = load(f"folder:{tmp_path}", img_size=8, channels=1, workers=0)
    x, _ = zip(*data.train.stream.loader(4, False, "none"), strict=True)
    assert torch.equal(torch.cat(x), grey.train.x) and data.shape == (1, 8, 8) and data.view(x[0]).shape[1] == 1
    assert load(f"folder:{tmp_path}", img_size=8, channels=3, workers=0).shape == (3, 8, 8)
    assert load("Digits", channels=3).train.x.shape[1:] == (3, 8, 8)


def test_tiffs_tags_are_read_as_expected():
    assert (pictures.BITS, pictures.PHOTOMETRIC, pictures.SAMPLE_FORMAT) == (
        TiffImagePlugin.BITSPERSAMPLE,
        TiffImagePlugin.PHOTOMETRIC_INTERPRETATION,
        TiffImagePlugin.SAMPLEFORMAT,
    )


def test_what_is_no_file_is_unreadable_at_once(tmp_path):
    """A pipe or a device would be waited for, or read without end."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name, words in (("pipe", "a pipe, a socket or a device"), ("zero", "a pipe, a socket or a device"), ("folder", "a folder")):
        for read in (read_picture, pictures.check_header):
            with pytest.raises(Unreadable, match=f"^{words}$"):
                read(tmp_path / f"{name}.png")


def test_a_picture_much_longer_than_wide_is_refused(tmp_path):
    """Resized to a shorter side of 224 pixels, 100,000 x 1 pixels would take 17 GB."""
    path = saved(tmp_path / "line.png", np.zeros((1, 2001, 3), np.uint8))
    with pytest.raises(Unreadable, match="^2001 x 1 pixels, longer than 200 times its width$"):
        read_picture(path)
    assert read_picture(saved(tmp_path / "strip.png", np.zeros((10, 2000, 3), np.uint8))).size == (2000, 10)


def test_a_picture_that_needs_too_much_memory_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", RAMP)

    def short_of_memory(*a):
        raise MemoryError

    monkeypatch.setattr(pictures, "on_white", short_of_memory)
    with pytest.raises(Unreadable, match="^more pixels than fit into memory$"):
        read_picture(path)


def test_long_names_are_cut_in_messages():
    assert len(pictures.unreadable([("x" * 5000, "empty")], 1)) < 400
