"""Pictures in files: read and refused before a model is there. No torch here."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offramp.errors import InputError, refused_as
from offramp.files import read_given
from offramp.kit.given import Given

INSTALL = "install it: pip install 'offramp[images]'"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is read. Pillow knows more formats, and hands one of them, PostScript, to a program that runs it."""
MOST_PIXELS = 50_000_000
"""Of a picture that is decoded; a model sees a few million at most."""
LONGEST_SIDE, LARGEST_RATIO = 32_768, 200
"""Of its sides: where the shorter one is scaled to what a model sees, the longer one grows with it."""


def read_picture(path: Path) -> Any:
    """The picture of a file, in RGB, as a `PIL.Image.Image`: of one of FORMATS, its first frame, turned as it
    is shown (EXIF).

    Raises InputError for a file that is missing, no such picture, damaged, of more than LARGEST_GIVEN bytes,
    MOST_PIXELS, LONGEST_SIDE, LARGEST_RATIO or 8 bits a channel, and without Pillow.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise InputError(
            "Pillow, which reads pictures, is not installed", where=str(path), fix=INSTALL
        ) from error
    content = io.BytesIO(read_given(path, "picture"))
    # Pillow does not say what its formats raise on bytes that they do not understand.
    understood = refused_as(
        InputError, "the picture cannot be read", Exception, where=str(path), fix="copy or save it again"
    )
    with warnings.catch_warnings(action="ignore"), understood:
        try:
            picture = Image.open(content, formats=FORMATS)
        except UnidentifiedImageError as error:
            what = f"it is no picture of a format that is read ({', '.join(FORMATS)})"
            raise _refused(path, what, "convert it to PNG or JPEG") from error
        except Image.DecompressionBombError as error:
            raise _refused(path, f"the picture is too large: {error}", "make it smaller") from error
        if picture.width * picture.height > MOST_PIXELS:
            size = f"{picture.width:,} x {picture.height:,} pixels"
            raise _refused(path, f"the picture has {size}, and {MOST_PIXELS:,} are read", "make it smaller")
        shorter, longer = sorted(picture.size)
        if longer > LONGEST_SIDE or longer > LARGEST_RATIO * shorter:
            what = f"the picture has {picture.width:,} x {picture.height:,} pixels, and sides of "
            what += f"{LONGEST_SIDE:,} at most are read, one {LARGEST_RATIO} times the other at most"
            raise _refused(path, what, "cut it into several pictures")
        if picture.mode.startswith(("I", "F")):  # whose numbers Pillow would cut off at 255
            what = f"the picture has more than 8 bits a channel (Pillow's mode {picture.mode})"
            raise _refused(path, what, "convert it to 8 bits a channel")
        ImageOps.exif_transpose(picture, in_place=True)
        return picture.convert("RGB")


def _refused(path: Path, what: str, fix: str) -> InputError:
    return InputError(what, where=str(path), fix=fix)


def _fingerprint(picture: Any) -> str:
    """SHA-256 of size and pixels: a file written anew with the same pixels has the same."""
    return hashlib.sha256("{}x{}:".format(*picture.size).encode() + picture.tobytes()).hexdigest()


def given_picture(path: str | Path, prompt: str) -> Given:
    """The picture of a file, and what is asked of it, as a model's input. Raises as `read_picture`."""
    return Given(str(path), kind="image", samples=_fingerprint(read_picture(Path(path))), prompt=prompt)


def given_pictures(paths: Sequence[str | Path], prompts: Sequence[Any], where: str) -> list[Given]:
    """The same of several, each with a prompt of its own. where: they were given.

    Raises InputError for others than one text for each picture.
    """
    if len(prompts) != len(paths) or not all(isinstance(prompt, str) for prompt in prompts):
        what = f"{len(prompts)} prompts are given for {len(paths)} pictures"
        raise InputError(what, where=where, fix="give one text for all of them, or one for each")
    return [given_picture(path, prompt) for path, prompt in zip(paths, prompts, strict=True)]


def picture_of(given: Given) -> Any:
    """What was given, read again. Raises InputError for a file whose picture is another now."""
    picture = read_picture(Path(given.text))
    if _fingerprint(picture) != given.samples:
        fix = "bring the file back as it was, or trace and decode again"
        raise InputError("the picture changed since it was given", where=given.text, fix=fix)
    return picture
