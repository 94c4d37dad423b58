"""Pictures in files: of a few formats, of bounded size, and refused where Pillow would fail."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image

from damage import damaged
from offramp.errors import InputError
from offramp.kit.picture import FORMATS, read_picture

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 10, 3), dtype=np.uint8))


def encoded(picture: Any, kind: str, **options: Any) -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, their sums correct."""
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width: int, height: int) -> tuple[bytes, bytes]:
    """The first chunk of a PNG in colour."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_of_each_format_are_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encoded(NOISE, kind))
    found = read_picture(tmp_path / "a")
    assert (found.mode, found.size) == ("RGB", NOISE.size)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
    ],
)
def test_pictures_of_each_kind_of_pixels_are_read_in_colour(mode: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encoded(NOISE.convert(mode), kind))
    assert read_picture(tmp_path / "a").mode == "RGB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_it_is_shown(kind: str, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    lying = Image.new("RGB", (32, 16), "red")
    lying.paste("blue", (0, 0, 16, 16))
    (tmp_path / "a").write_bytes(encoded(lying, kind, exif=turned))
    found = read_picture(tmp_path / "a")
    assert found.size == (16, 32)
    assert found.getpixel((8, 4))[2] > 200  # blue is above


def test_a_picture_of_several_frames_is_its_first(tmp_path: Path) -> None:
    for kind in ("GIF", "TIFF"):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
        (tmp_path / "a").write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert read_picture(tmp_path / "a").getpixel((1, 1)) == (255, 0, 0)


def test_a_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to a program that runs it, by what a file begins with and not by its name."""
    ran: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **named: ran.append(given) or NOISE.im)
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(program)
    with pytest.raises(InputError, match=r"no picture of a format that is read \(PNG, JPEG") as refused:
        read_picture(tmp_path / "a.png")
    assert refused.value.fix == "convert it to PNG or JPEG"
    assert not ran


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(5_001, 10_000), (10_000, 10_000), (100_000, 100_000)])
def test_a_picture_of_too_many_pixels_is_not_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(header(*size), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")))
    with pytest.raises(InputError, match=r"50,000,000 are read|the picture is too large") as refused:
        read_picture(tmp_path / "a.png")
    assert refused.value.fix == "make it smaller"


@pytest.mark.parametrize("size", [(6_000_000, 1), (1, 32_769), (2_010, 10)])
def test_a_picture_with_a_very_long_side_is_not_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(header(*size), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")))
    with pytest.raises(
        InputError, match="sides of 32,768 at most are read, one 200 times the other"
    ) as refused:
        read_picture(tmp_path / "a.png")
    assert refused.value.where == str(tmp_path / "a.png")


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.float32)])
def test_numbers_beyond_8_bits_are_not_cut_off(kind: str, dtype: type, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(encoded(Image.fromarray(np.full((4, 4), 300, dtype)), kind))
    with pytest.raises(InputError, match="more than 8 bits a channel"):
        read_picture(tmp_path / "a")


def test_a_text_in_a_picture_that_grows_beyond_bounds_is_refused(tmp_path: Path) -> None:
    text = b"Comment\x00\x00" + zlib.compress(bytes(20_000_000))
    (tmp_path / "a.png").write_bytes(png(header(4, 4), (b"zTXt", text), (b"IEND", b"")))
    with pytest.raises(InputError, match="the picture cannot be read: Decompressed data too large"):
        read_picture(tmp_path / "a.png")


def test_whatever_pillow_raises_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(encoded(NOISE, "PNG"))

    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(Image.Image, "convert", fail)
    for raised in (
        IndexError("7"),
        struct.error("torn"),
        RecursionError(),
        NotImplementedError(),
        OSError("torn"),
    ):
        said = str(raised) or type(raised).__name__
        with pytest.raises(InputError, match=f"the picture cannot be read: {said}") as refused:
            read_picture(tmp_path / "a.png")
        assert refused.value.where == str(tmp_path / "a.png")
    raised = MemoryError()
    with pytest.raises(MemoryError):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_picture_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    whole, chance = encoded(NOISE, kind), random.Random(kind)
    for _ in range(40):
        (tmp_path / "a").write_bytes(damaged(whole, chance))
        with contextlib.suppress(InputError):
            assert read_picture(tmp_path / "a").mode == "RGB"
