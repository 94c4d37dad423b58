"""Pictures in files: read and refused before a model is there. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.kit.given import Given

INSTALL = "install it: pip install 'offramp[images]'"


def read_picture(path: Path) -> Any:
    """The picture of a file, in RGB, as a `PIL.Image.Image`: of any format of Pillow's, its first frame.

    Raises InputError for a file that is missing, no picture, torn or too large, and without Pillow.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError(
            "Pillow, which reads pictures, is not installed", where=str(path), fix=INSTALL
        ) from error
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except UnidentifiedImageError as error:
        raise _refused(path, "it is no picture that Pillow reads", "convert it to PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise _refused(path, f"the picture is too large: {error}", "make it smaller") from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on a file that ends too early
        torn = getattr(error, "strerror", None) is None
        what = f"the picture is torn: {error}" if torn else f"the picture cannot be read: {error.strerror}"  # type: ignore[union-attr]
        raise _refused(path, what, "copy or save it again" if torn else "check the path") from error


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
