"""Folders of images: what is taken, what is left out with a word, and what a decoder would have changed."""

import os
import re
import shutil
import struct
import subprocess
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


def png(path, bits, colour, palette=b""):
    """A PNG of other than 8 bits, by hand: Pillow cannot write one."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    width = 8 * bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] // 8
    rows = b"".join(b"\0" + bytes(range(width)) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"PLTE", palette) if palette else b"")
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


def tiff(path, bits=8, sample_format=1, photometric=1, colours=()):
    data = bytes(range(8 * bits))
    tags = [
        (256, 8),
        (257, 8),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, 8),
        (279, len(data)),
    ]
    tags.append((339, sample_format))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    count, table = len(tags), struct.pack(f"<{len(colours)}H", *colours)
    if colours:  # the tags are in order of their numbers, and this one is between the last two
        entries = entries[:-12] + struct.pack("<HHII", 320, 3, len(colours), 8 + len(data)) + entries[-12:]
        count += 1
    offset = struct.pack("<I", 8 + len(data) + len(table))
    path.write_bytes(b"II*\0" + offset + data + table + struct.pack("<H", count) + entries + bytes(4))


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
    path.write_bytes(b"P2 8 8 7\n" + b" ".join(b"%d" % (i % 8) for i in range(64)) + b"\n")


def deep_pgm(path):
    path.write_bytes(b"P6 8 8 65535\n" + bytes(8 * 8 * 6))


def alpha(mode):
    def write(path):
        image = picture(mode="RGB").convert(mode)
        opacity = Image.new("L", image.size, 255)
        opacity.putpixel((3, 3), 254)
        image.putalpha(opacity)
        image.save(path)

    return write


def transparent_palette(path):
    image = picture().convert("P")
    image.save(path, transparency=image.getpixel((0, 0)))


def palette_tiff(path, unit):
    """A TIFF's colours have 16 bits: n times `unit`."""
    tiff(path, photometric=3, colours=[min(unit * i, 65535) for i in range(256)] * 3)


def palette_tga(path):
    header = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 4, 16, 0, 0, 8, 8, 8, 0x20)
    path.write_bytes(header + struct.pack("<4H", 1, 77, 1234, 32767) + bytes(i % 4 for i in range(64)))


def short_palette(path):
    png(path, 8, 3, palette=bytes(6))


def bmp(path, bits):
    """White and black in that many bits; Pillow reads 8 as if they were 1."""
    rows = 8 * (b"\x5a\0\0\0" if bits == 1 else bytes([0, 1, 0, 1, 1, 0, 1, 0]))
    header = (
        struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, 0, len(rows), 0, 0, 2, 0) + b"\0\0\0\0\xff\xff\xff\0"
    )
    path.write_bytes(b"BM" + struct.pack("<IHHI", 62 + len(rows), 0, 0, 62) + header + rows)


def bmp_565(path):
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 16, 3, 128, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 66 + 128, 0, 0, 66) + header + masks + bytes(range(128)))


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
    "an alpha channel": (alpha("RGBA"), "a.png", r"has transparent pixels \(RGBA\)"),
    "an alpha channel of gray": (alpha("LA"), "a.png", r"has transparent pixels \(LA\)"),
    "an alpha channel of a TGA": (alpha("RGBA"), "a.tga", r"has transparent pixels \(RGBA\)"),
    "a palette with transparency": (transparent_palette, "a.png", "transparent colour"),
    "a palette with transparency of a GIF": (transparent_palette, "a.gif", "transparent colour"),
    "a palette of 16 bits": (lambda path: palette_tiff(path, 300), "a.tif", "palette of colours other than"),
    "a palette of 5 bits": (palette_tga, "a.tga", "palette of colours other than 8-bit RGB"),
    "an index beyond a palette": (short_palette, "a.png", "beyond its palette of 2 colours"),
    "8 bits that are said to be 1": (lambda path: bmp(path, 8), "a.bmp", "mistake for 1 bit"),
    "16 bits of alpha": (lambda path: png(path, 16, 6), "a.png", "has 16 bits"),
    "16 bits of gray and alpha": (lambda path: png(path, 16, 4), "a.png", "has 16 bits"),
    "5 and 6 bits of a BMP": (bmp_565, "a.bmp", "does not have 8 bits"),
    "two bitmaps": (
        lambda path: path.write_bytes(2 * (b"P4 8 8\n" + bytes(range(8)))),
        "a.pnm",
        "more than one",
    ),
    "two bitmaps of text": (
        lambda path: path.write_bytes(b"P1 2 2\n0110\nP1 2 2\n0110"),
        "a.pnm",
        "is not a readable image",
    ),
    "floats": (
        lambda path: Image.fromarray(np.zeros((8, 8), np.float32)).save(path),
        "a.tif",
        "16 bits or more",
    ),
    "a TIFF without its palette": (
        lambda path: tiff(path, photometric=3),
        "a.tif",
        "is not a readable image",
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


def alike(images, *pictures):
    """Each image is one of the pictures, values and channels."""
    for image, expected in zip(images, pictures, strict=True):
        np.testing.assert_array_equal(np.squeeze(image), np.asarray(expected))


def load_all(root, num_levels=256):
    return load_examples(f"folder:{root}", "test", num_levels=num_levels).images


@pytest.mark.parametrize("suffix", ["png", "tif", "tga", "webp", "bmp"])
def test_opaque_alpha_is_dropped(tmp_path, said, suffix):
    image = picture(mode="RGB")
    image.save(tmp_path / "a.png")
    options = {"lossless": True} if suffix == "webp" else {}
    image.convert("RGBA").save(tmp_path / f"b.{suffix}", **options)
    alike(load_all(tmp_path), image, image)
    if suffix not in ("webp", "bmp"):  # whose encoders drop such an alpha themselves
        assert said.messages[-1] == f"{tmp_path}: converted without loss: 1 of opaque RGBA to RGB"


@pytest.mark.parametrize("suffix", ["png", "tif", "tga"])
def test_opaque_alpha_of_gray_is_dropped(tmp_path, said, suffix):
    picture().convert("LA").save(tmp_path / f"a.{suffix}")
    alike(load_all(tmp_path), picture())
    text = "converted without loss: 1 of opaque grayscale with alpha to grayscale"
    assert said.messages[-1] == f"{tmp_path}: {text}"


def colours_of_palette(seed=0, num=200):
    """(image of mode P, the same in RGB)."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, num, (8, 8), dtype=np.uint8))
    image = image.convert("P")
    image.putpalette(np.random.default_rng(seed + 1).integers(0, 256, 3 * num, dtype=np.uint8).tobytes())
    return image, image.convert("RGB")


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif", "tga"])
@pytest.mark.parametrize("num", [2, 4, 16, 200])
def test_a_palette_is_its_colours(tmp_path, said, suffix, num):
    image, colours = colours_of_palette(num=num)
    image.save(tmp_path / f"a.{suffix}", **({"bits": 4} if suffix == "png" and num == 16 else {}))
    alike(load_all(tmp_path), colours)
    assert said.messages[-1] == f"{tmp_path}: converted without loss: 1 of a palette to RGB"


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tga"])
def test_a_grey_palette_is_grayscale(tmp_path, said, suffix):
    image = picture().convert("P")
    image.putpalette([255 - i // 3 for i in range(768)])  # reversed: the index is not the value
    image.save(tmp_path / f"a.{suffix}")
    alike(load_all(tmp_path), image.convert("L"))
    assert said.messages[-1] == f"{tmp_path}: converted without loss: 1 of a grey palette to grayscale"


@pytest.mark.parametrize("first", [True, False])
def test_a_grey_palette_among_colours_is_of_colours(tmp_path, said, first):
    """ImageMagick and others write a palette for an image of few colours, whatever the others are."""
    grey, (image, colours) = picture().convert("P"), colours_of_palette()
    grey.save(tmp_path / ("0.png" if first else "2.png"))
    image.save(tmp_path / "1.png")
    expected = [grey.convert("RGB"), colours]
    alike(load_all(tmp_path), *(expected if first else expected[::-1]))
    assert said.messages[-1] == f"{tmp_path}: converted without loss: 2 of a palette to RGB"


def test_a_palette_of_a_tiff_in_either_convention(tmp_path):
    """Colours of 8 bits are written as n * 257 or n * 256."""
    for unit in (256, 257):
        palette_tiff(tmp_path / "a.tif", unit)
        np.testing.assert_array_equal(load_all(tmp_path).ravel(), np.arange(64))


def test_one_bit(tmp_path, said):
    bits = np.random.default_rng(0).integers(0, 2, (8, 8), dtype=np.uint8)
    image = Image.fromarray(255 * bits).convert("1")
    for name in ("a.png", "b.tif", "c.bmp", "d.pnm"):
        image.save(tmp_path / name, **({"format": "PPM"} if name == "d.pnm" else {}))
    (tmp_path / "e.pnm").write_bytes(b"P1 8 8\n" + b"".join(b"%d" % (1 - bit) for bit in bits.ravel()))
    for levels, unit in ((256, 255), (2, 1)):
        images = load_all(tmp_path, levels)
        assert images.dtype == np.uint8
        alike(images, *(5 * [unit * bits]))
        assert said.messages[-1] == f"{tmp_path}: converted without loss: 5 of 1 bit to 0 and {unit}"
    with pytest.raises(UserError, match="5 of 5 files .*has 1 bit, .*num_levels=2, not 16"):
        load_all(tmp_path, 16)


def test_one_bit_beside_eight(tmp_path):
    bmp(tmp_path / "a.bmp", 1)
    picture().save(tmp_path / "b.png")
    black_and_white = Image.open(tmp_path / "a.bmp").convert("L")
    assert set(np.unique(np.asarray(black_and_white))) == {0, 255}
    alike(load_all(tmp_path), black_and_white, picture())


def test_conversions_are_counted_once_over_both_splits(tmp_path, said):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for i in range(2):
            picture(i, "RGB").convert("RGBA").save(tmp_path / split / f"{i}.png")
    colours_of_palette()[0].save(tmp_path / "train" / "x.png")
    load(f"folder:{tmp_path}")
    assert [message for message in said.messages if "converted" in message] == [
        f"{tmp_path}: converted without loss: 1 of a palette to RGB, 4 of opaque RGBA to RGB"
    ]


def test_the_hash_is_of_what_was_taken(tmp_path):
    for name, mode in (("rgb", "RGB"), ("rgba", "RGBA")):
        (tmp_path / name).mkdir()
        picture(mode="RGB").convert(mode).save(tmp_path / name / "a.png")
    one, other = (
        load_examples(f"folder:{tmp_path / name}", "test", num_levels=256) for name in ("rgb", "rgba")
    )
    assert one.fingerprint == other.fingerprint


def test_grayscale_among_colours_is_refused(tmp_path):
    picture(mode="RGB").save(tmp_path / "a.png")
    picture().save(tmp_path / "b.png")
    assert "b.png is 8x8 with 1 channel and " in refused(tmp_path, "alike: `magick IN PNG24:OUT.png`")
    picture().save(tmp_path / "0.png")
    picture().save(tmp_path / "1.png")
    (tmp_path / "b.png").unlink()
    assert "a.png is 8x8 with 3 channels and " in refused(tmp_path, "alike: `magick IN -colorspace Gray OUT`")


# By the case of CHANGED: all whose message has a command, which makes a file that is taken.
COMMANDS = [
    case
    for case in CHANGED
    if not re.search("sign|no image|half an image|beyond|without its palette|bitmaps of text", case)
]


@pytest.mark.skipif(not shutil.which("magick"), reason="ImageMagick 7 is not installed")
@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_of_a_message_makes_a_file_that_is_taken(tmp_path, case):
    write, name, _ = CHANGED[case]
    path = tmp_path / name
    write(path)
    for step in range(3):  # a file may be wrong in two ways
        (command,) = re.findall("`magick (IN .*?)`", complaint(path.parent))
        folder = tmp_path / str(step)
        folder.mkdir()
        *words, out = command.split()
        out = out.replace("OUT", str(folder / "OUT")) + (path.suffix if out == "OUT" else "")
        subprocess.run(["magick", str(path), *words[1:], out], check=True, capture_output=True)
        path = next(folder.iterdir())
        if not complaint(folder):
            break
    assert len(load_all(folder)) >= 1


@pytest.mark.skipif(not shutil.which("magick"), reason="ImageMagick 7 is not installed")
def test_the_commands_for_images_that_are_not_alike(tmp_path):
    """Each makes the second image like the first."""
    for i, (one, other) in enumerate(
        (
            (picture(mode="RGB"), picture()),
            (picture(), picture(mode="RGB")),
            (picture(), picture(size=(5, 9))),
            (picture(mode="RGB", size=(4, 7)), picture()),
        )
    ):
        root = tmp_path / str(i)
        root.mkdir()
        one.save(root / "a.png")
        other.save(root / "b.png")
        while len(found := re.findall("`(magick IN .*?)`", complaint(root))) == 1:
            words = [str(root / "b.png") if word in ("IN", "OUT") else word for word in found[0].split()]
            words = [word.replace("OUT.png", str(root / "b.png")) for word in words]
            subprocess.run(words, check=True, capture_output=True)
        assert not found and len(load_all(root)) == 2


def complaint(root):
    try:
        load_all(root)
    except UserError as error:
        return str(error)
    return ""
