"""Sounds in WAV files: read and refused before a model is there, and brought to its rate. No torch here."""

from __future__ import annotations

import hashlib
import io
import struct
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError, refused_as
from offramp.files import read_given
from offramp.kit.given import Given

CODECS = {2: "ADPCM", 3: "IEEE float", 6: "A-law", 7: "mu-law", 85: "MP3", 65534: "extensible"}
CONVERT = "convert it to PCM of 16 bits: ffmpeg -i FILE -c:a pcm_s16le NEW.wav"
AGAIN = "copy or record it again"
UNSTATED = 0xFFFFFFFF
"""What stands for a size by those who write to a pipe, and cannot go back to state it."""
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Samples a second of what is read: from less than a telephone's to the most that is recorded."""
LARGEST_STEP = 100_000
"""Of the whole numbers whose ratio is that of two rates: the filter between them has 20 taps for each."""


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound in memory."""

    samples: NDArray[np.float32]
    """float32 [samples], from -1 to 1, the channels averaged."""
    rate: int
    """Samples a second."""

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate

    @property
    def fingerprint(self) -> str:
        """SHA-256 of rate and samples: a file written anew with the same sound has the same."""
        return hashlib.sha256(f"{self.rate}:".encode() + self.samples.astype("<f4").tobytes()).hexdigest()

    def at(self, rate: int) -> NDArray[np.float32]:
        """Its samples at another rate, by a polyphase filter: float32 [seconds x rate, rounded up].

        Of rates whose ratio needs numbers beyond LARGEST_STEP, the nearest ratio without them is taken.
        """
        if rate == self.rate:
            return self.samples
        from scipy.signal import resample_poly

        ratio = Fraction(rate, self.rate).limit_denominator(LARGEST_STEP)
        resampled = resample_poly(self.samples, ratio.numerator, ratio.denominator)
        length = -(-len(self.samples) * rate // self.rate)
        return np.asarray(resampled[:length], dtype=np.float32)


def read_wav(path: Path) -> Sound:
    """The sound of a WAV file: PCM of 8, 16, 24 or 32 bits, of LOWEST_RATE to HIGHEST_RATE samples a second.

    Raises InputError for a file that is missing, no WAV, torn, of another codec or rate or of more than
    LARGEST_GIVEN bytes, and for a sound without a sample or of zeros alone.
    """
    given = io.BytesIO(read_given(path, "sound"))
    # The module does not say what it raises on a header that it does not understand.
    with refused_as(InputError, "the sound cannot be read", Exception, where=str(path), fix=AGAIN):
        try:
            with wave.open(given) as file:
                channels, width, rate, frames = file.getparams()[:4]
                content = file.readframes(frames)
        except (EOFError, RuntimeError) as error:  # of a part that states to go on behind the end
            raise _refused(path, "the WAV file is torn: it ends within its header", AGAIN) from error
        except wave.Error as error:
            number = str(error).removeprefix("unknown format: ")
            codec = CODECS.get(int(number), f"number {number}") if number.isdecimal() else None
            what = (
                f"it is no WAV file of PCM: {error}" if codec is None else f"its codec, {codec}, is not read"
            )
            raise _refused(path, what, CONVERT) from error
    held = len(content) / (channels * width)
    parts = _parts(given.getvalue())
    names = [name for name, _, _ in parts]
    _, size, _ = parts[names.index(b"data")]
    if size == UNSTATED:
        what = "the WAV file was written to a pipe: it does not state how many samples it has"
        raise _refused(path, what, "write it as a file: ffmpeg -i FILE -c copy NEW.wav")
    if held != frames:
        what = f"the WAV file is torn: it states {frames:,} samples and holds {int(held):,}"
        raise _refused(path, what, AGAIN)
    if size % (channels * width):
        raise _refused(path, "the WAV file is torn: it ends within a sample", AGAIN)
    for part, called in ((b"fmt ", "headers (fmt)"), (b"data", "parts of samples (data)")):
        if names.count(part) > 1:
            raise _refused(path, f"the WAV file has several {called}", AGAIN)
    a_second, a_frame = struct.unpack_from("<IH", given.getvalue(), parts[names.index(b"fmt ")][2] + 8)
    if (a_frame, a_second) != (channels * width, channels * width * rate):
        what = f"{channels} x {8 * width} bits at {rate:,} Hz are not {a_frame:,} bytes a frame and "
        what = f"the WAV header contradicts itself: {what}{a_second:,} a second"
        raise _refused(path, what, AGAIN)
    if width > 4:
        raise _refused(path, f"PCM of {8 * width} bits is not read", CONVERT)
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        what = f"its rate is {rate:,} Hz, and {LOWEST_RATE:,} to {HIGHEST_RATE:,} Hz are read"
        raise _refused(path, what, "convert it to 16,000 Hz: ffmpeg -i FILE -ar 16000 NEW.wav")
    heard = _samples(content, width).reshape(-1, channels)
    samples = heard.mean(axis=1).astype(np.float32)
    if not samples.any():
        silent = "channels that cancel each other out" if heard.any() else "zeros alone"
        what = f"the sound is silence, {silent}" if len(samples) else "the sound has no samples"
        raise _refused(path, what, "leave it out, or record it again")
    return Sound(samples, rate)


def _refused(path: Path, what: str, fix: str) -> InputError:
    return InputError(what, where=str(path), fix=fix)


def _parts(content: bytes) -> list[tuple[bytes, int, int]]:
    """Names, stated sizes and first bytes of the parts of a WAV file."""
    at, parts = 12, []
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        parts.append((name, size, at + 8))
        at += 8 + size + size % 2
    return parts


def _samples(content: bytes, width: int) -> NDArray[np.float64]:
    """Numbers from -1 to 1 of little-endian PCM; 8 bits are unsigned."""
    if width == 1:
        return (np.frombuffer(content, np.uint8).astype(np.float64) - 128) / 128
    if width == 3:  # as the upper bytes of 32 bits
        padded = np.zeros((len(content) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        content, width = padded.tobytes(), 4
    return np.frombuffer(content, f"<i{width}") / np.float64(1 << (8 * width - 1))


def given_sound(path: str | Path, sound: Sound | None = None) -> Given:
    """The sound of a WAV file as an encoder's input. sound: if it was read already. Raises as `read_wav`."""
    sound = read_wav(Path(path)) if sound is None else sound
    return Given(str(path), kind="audio", samples=sound.fingerprint, seconds=sound.seconds)


def sound_of(given: Given) -> Sound:
    """What was given, read again. Raises InputError for a file whose sound is another now."""
    sound = read_wav(Path(given.text))
    if sound.fingerprint != given.samples:
        fix = "bring the file back as it was, or trace and decode again"
        raise InputError("the sound changed since it was given", where=given.text, fix=fix)
    return sound


def require_within(given: Given, seconds: float, name: str) -> None:
    """Raise InputError for a sound that lasts longer than a model reads."""
    if given.seconds > seconds:
        what = f"the sound lasts {given.seconds:.1f} s, and {name} reads {seconds:g} s at most"
        raise InputError(what, where=given.text, fix="cut it into several files, each with its own text")
