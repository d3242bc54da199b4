"""Folders of images: what is taken, what is left out with a word, and what a decoder would have changed."""

import logging
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from jvdm.core.errors import UserError
from jvdm.data import load, load_examples


def picture(seed=0, mode="L", size=(8, 8)):
    shape = (*size, 3) if mode == "RGB" else size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def folder_of(root, *names, mode="L"):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i, mode).save(root / name)
    return root


def names(root, split="test"):
    return load_examples(f"folder:{root}", split, num_levels=256).names


def refused(root, match):
    with pytest.raises(UserError, match=match) as error:
        load_examples(f"folder:{root}", "test", num_levels=256)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="jvdm")
    logging.getLogger("jvdm").propagate = True
    return caplog


def test_links_to_folders_are_followed(tmp_path):
    folder_of(tmp_path / "set", "cats/0.png", "cats/1.png")
    folder_of(tmp_path / "elsewhere", "0.png", "1.png")
    (tmp_path / "set" / "dogs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cats" / "all").symlink_to(tmp_path / "set")  # a circle
    assert names(tmp_path / "set") == ("cats/0.png", "cats/1.png", "dogs/0.png", "dogs/1.png")


def test_links_to_files_and_links_to_nothing(tmp_path):
    folder_of(tmp_path, "0.png")
    (tmp_path / "1.png").symlink_to(tmp_path / "0.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    assert names(tmp_path) == ("0.png", "1.png")


def test_hidden_files_and_others_are_left_out_with_a_word(tmp_path, said):
    folder_of(tmp_path, "0.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/._0.png", "a/.hidden.png")
    for name in ("labels.csv", "README", "b.npy", "c.npy", "d.avif"):
        (tmp_path / name).write_bytes(b"")
    assert names(tmp_path) == ("0.png",)
    (message,) = said.messages
    assert message == (
        f"{tmp_path}: 1 images; left out: 1 of .avif, 1 of .csv, 2 of .npy, 1 of no suffix, 3 hidden"
    )


def test_nothing_is_said_of_nothing_left_out(tmp_path, said):
    folder_of(tmp_path, "0.png", "1.png")
    names(tmp_path)
    assert said.messages == [f"{tmp_path}: 2 images"]


def test_every_suffix_of_jpeg_and_what_has_no_loss(tmp_path):
    for i, suffix in enumerate(("jpg", "jpeg", "jpe", "jfif", "JPG")):
        picture(i).save(tmp_path / f"{i}.{suffix}", format="JPEG")
    for suffix in ("png", "bmp", "tga", "tif", "tiff", "pgm"):
        picture().save(tmp_path / f"z.{suffix}")
    assert len(names(tmp_path)) == 11
    for mode in ("L", "RGB"):
        root = tmp_path / mode
        for suffix in ("png", "bmp", "tga", "tif"):
            root.mkdir(exist_ok=True)
            picture(mode=mode).save(root / f"z.{suffix}")
        images = load_examples(f"folder:{root}", "test", num_levels=256).images
        for image in images:
            np.testing.assert_array_equal(np.squeeze(image), np.asarray(picture(mode=mode)))


def png(path, bits, colour):
    """A PNG of other than 8 bits, by hand: Pillow cannot write one."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    width = 8 * bits * (3 if colour == 2 else 1) // 8
    rows = b"".join(b"\0" + bytes(range(width)) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def colour_16(path):
    """Pillow reads 8 of the 16 bits."""
    png(path, 16, 2)


def bmp_555(path):
    """Five bits per colour, which Pillow makes eight."""
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 16, 0, 128, 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 54 + 128, 0, 0, 54) + header + bytes(range(128)))


def tiff(path, bits=8, sample_format=1):
    data = bytes(range(8 * bits))
    tags = [
        (256, 8),
        (257, 8),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 8),
        (279, len(data)),
    ]
    tags.append((339, sample_format))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    offset = struct.pack("<I", 8 + len(data))
    path.write_bytes(b"II*\0" + offset + data + struct.pack("<H", len(tags)) + entries + bytes(4))


def two_images(path):
    path.write_bytes(2 * (b"P5 8 8 255\n" + bytes(range(64))))


def pages(path):
    picture(0).save(path, format="TIFF", save_all=True, append_images=[picture(i) for i in range(1, 50)])


def animation(path):
    frames = [picture(i, "RGB") for i in range(3)]
    frames[0].save(path, format="PNG", save_all=True, append_images=frames[1:])


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(path, format="JPEG", exif=exif)


def transparent(path):
    picture(mode="RGB").save(path, format="PNG", transparency=(1, 2, 3))


def transparent_gray(path):
    picture().save(path, format="PNG", transparency=7)


def stretched(path):
    path.write_bytes(b"P5\n# levels\n8 8\n15\n" + bytes(range(16)) * 4)


def stretched_text(path):
    path.write_bytes(b"P2 8 8 7\n" + b" ".join(b"%d" % (i % 8) for i in range(64)))


def deep_pgm(path):
    path.write_bytes(b"P6 8 8 65535\n" + bytes(8 * 8 * 6))


CHANGED = {
    "16 bits of a PNG": (colour_16, "a.png", "has 16 bits"),
    "16 bits of a PPM": (deep_pgm, "a.ppm", "16 bits"),
    "4 bits of a PNG": (lambda path: png(path, 4, 0), "a.png", "does not have 8 bits"),
    "2 bits of a PNG": (lambda path: png(path, 2, 0), "a.png", "does not have 8 bits"),
    "4 bits of a TIFF": (lambda path: tiff(path, 4), "a.tif", "does not have 8 bits"),
    "5 bits of a BMP": (bmp_555, "a.bmp", "does not have 8 bits"),
    "a sign": (lambda path: tiff(path, sample_format=2), "a.tif", "samples with a sign"),
    "two images of a PGM": (two_images, "a.pgm", "more than one image"),
    "another format under this name": (
        lambda path: picture().save(path, format="JPEG2000"),
        "a.jpg",
        "is in the format JPEG2000",
    ),
    "50 pages": (pages, "a.tif", "has 50 frames or pages"),
    "an animation": (animation, "a.png", "has 3 frames or pages"),
    "an orientation": (turned, "a.jpg", "EXIF orientation 6"),
    "a transparent colour": (transparent, "a.png", "transparent colour"),
    "a transparent gray": (transparent_gray, "a.png", "transparent colour"),
    "values up to 15": (stretched, "a.pgm", "values up to 15"),
    "values up to 7": (stretched_text, "a.pgm", "values up to 7"),
    "a palette": (lambda path: picture().convert("P").save(path), "a.gif", "pixel format P"),
    "an alpha channel": (
        lambda path: picture(mode="RGB").convert("RGBA").save(path),
        "a.png",
        "pixel format RGBA",
    ),
    "16 bits of gray": (
        lambda path: Image.fromarray(np.zeros((8, 8), np.uint16)).save(path),
        "a.png",
        "I;16",
    ),
    "four inks": (lambda path: picture(mode="RGB").convert("CMYK").save(path), "a.jpg", "pixel format CMYK"),
    "no image": (lambda path: path.write_bytes(b"not one"), "a.png", "is not a readable image"),
    "half an image": (
        lambda path: (picture(size=(64, 64)).save(path), path.write_bytes(path.read_bytes()[:1000])),
        "a.png",
        "is not a readable image",
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_what_a_decoder_would_change_is_refused(tmp_path, case):
    write, name, message = CHANGED[case]
    write(tmp_path / name)
    assert str(tmp_path / name) in refused(tmp_path, message)


def test_all_bad_files_are_in_one_error(tmp_path):
    """Each was reported alone, after all others had been read again."""
    folder_of(tmp_path, *(f"{i:03d}.png" for i in range(20)))
    for i in range(3):
        (tmp_path / f"{i:03d}.png").write_bytes(b"bad")
    turned(tmp_path / "x.jpg")
    picture(size=(8, 9)).save(tmp_path / "y.png")
    text = refused(tmp_path, "5 of 22 files cannot be taken: ")
    for name in ("000.png", "001.png", "002.png", "x.jpg has the EXIF", "y.png is 8x9"):
        assert name in text
    for i in range(20):
        (tmp_path / f"{i:03d}.png").write_bytes(b"bad")
    refused(tmp_path, r"2. of 22 files cannot be taken: .*; and 1. more")


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    folder_of(tmp_path, "0.png")
    try:
        shutil.copy(tmp_path / "0.png", tmp_path / name)
    except OSError:
        pytest.skip("this file system has no names that are not UTF-8")
    assert set(names(tmp_path)) == {"0.png", name}


def test_channels_first_are_refused(tmp_path):
    good = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "good.npz", train_images=good, test_images=good)
    load(f"npz:{tmp_path / 'good.npz'}", num_levels=256)
    bad = np.moveaxis(good, -1, 1)
    np.savez(tmp_path / "bad.npz", train_images=bad, test_images=bad)
    with pytest.raises(UserError, match=r"looks like \[N, C, H, W\].*numpy.moveaxis"):
        load(f"npz:{tmp_path / 'bad.npz'}", num_levels=256)


def test_a_comment_in_the_text_of_a_png_changes_nothing(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "RGB;16")
    picture().save(tmp_path / "a.png", pnginfo=info)
    assert names(tmp_path) == ("a.png",)


def test_bad_files_of_both_splits_are_in_one_error(tmp_path):
    folder_of(tmp_path, "train/0.png", "test/0.png")
    for split in ("train", "test"):
        (tmp_path / split / "bad.png").write_bytes(b"bad")
    with pytest.raises(UserError, match="2 of 4 files cannot be taken") as error:
        load(f"folder:{tmp_path}", num_levels=256)
    assert all(f"{split}/bad.png" in str(error.value) for split in ("train", "test"))


def test_headers_of_netpbm(tmp_path):
    """Comments of any length and any white space; and a TIFF of 8 bits, made as those that are refused."""
    pixels = bytes(range(64))
    for name, header in (
        ("a.pgm", b"P5\n# " + 5000 * b"x" + b"\n8 8\n255\n"),
        ("b.pgm", b"P5 8 # 9 9\r8 255\n"),
        ("c.pgm", b"P5\r8\r8\r255\r"),
    ):
        (tmp_path / name).write_bytes(header + pixels)
    (tmp_path / "d.pgm").write_bytes(b"P2 8 8 255 # levels\n" + b" ".join(b"%d" % x for x in pixels))
    tiff(tmp_path / "e.tif")
    images = load_examples(f"folder:{tmp_path}", "test", num_levels=256).images
    np.testing.assert_array_equal(images.reshape(5, 64), np.tile(np.arange(64), (5, 1)))
