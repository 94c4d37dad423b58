"""WAV files: read as scipy reads them, and refused where they say nothing."""

from __future__ import annotations

import contextlib
import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
from hypothesis import given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray

from damage import damaged
from offramp.errors import InputError
from offramp.kit.sound import Sound, given_sound, read_wav, require_within, sound_of
from tiny_models import write_wav

TONE = np.sin(np.arange(800) / 7.0)


def pcm(content: bytes, *, width: int, channels: int = 1, rate: int = 8_000, codec: int = 1) -> bytes:
    """A WAV file, byte for byte."""
    block = channels * width
    form = struct.pack("<HHIIHH", codec, channels, rate, rate * block, block, 8 * width)
    parts = (
        b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(content)) + content
    )
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WAVE" + parts


@settings(max_examples=40, deadline=None)
@given(
    width=some.sampled_from([1, 2, 3, 4]),
    channels=some.integers(1, 3),
    values=some.lists(some.integers(0, 255), min_size=12, max_size=120),
)
def test_samples_are_those_that_scipy_reads(
    width: int, channels: int, values: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    block = channels * width
    content = bytes(values[: len(values) // block * block])
    file = pcm(content, width=width, channels=channels)
    _, expected = scipy.io.wavfile.read(io.BytesIO(file))
    largest = {1: 128.0, 2: 2.0**15, 3: 2.0**31, 4: 2.0**31}[width]
    scaled = (expected.astype(np.float64) - (128 if width == 1 else 0)) / largest
    mean = scaled.reshape(-1, channels).mean(axis=1).astype(np.float32)
    path = tmp_path_factory.mktemp("sounds") / "a.wav"
    path.write_bytes(file)
    if not mean.any():
        with pytest.raises(InputError, match="silence"):
            read_wav(path)
        return
    sound = read_wav(path)
    np.testing.assert_array_equal(sound.samples, mean)
    assert (sound.samples.dtype, sound.rate, sound.seconds) == (np.float32, 8_000, len(mean) / 8_000)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


SIXTEEN = np.arange(1, 9, dtype="<i2").tobytes()
HEAD = struct.pack("<HH", 1, 1)
"""The codec and the number of channels."""
TWO_HEADERS = pcm(SIXTEEN + bytes(24), width=2)[:36] + pcm(SIXTEEN, width=1)[12:]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "torn: it ends within its header"),
        (pcm(SIXTEEN, width=2)[:20], "torn: it ends within its header"),
        (pcm(SIXTEEN, width=2)[:-6], "torn: it states 8 samples and holds 5"),
        (pcm(SIXTEEN + b"\1", width=2), "torn: it ends within a sample"),
        (
            pcm(SIXTEEN, width=2).replace(b"data", b"LIST\xf0\xff\xff\xffdata"),
            "torn: it ends within its header",
        ),
        (TWO_HEADERS, "several headers"),
        (pcm(SIXTEEN, width=2) + b"data\2\0\0\0\1\1", "several parts of samples"),
        (pcm(b"\1\0\xff\xff" * 4, width=2, channels=2), "silence, channels that cancel each other out"),
        (pcm(b"", width=2), "has no samples"),
        (pcm(bytes(16), width=2), "silence, zeros alone"),
        (pcm(SIXTEEN, width=4, codec=3), "its codec, IEEE float, is not read"),
        (pcm(SIXTEEN, width=1, codec=7), "its codec, mu-law, is not read"),
        (pcm(SIXTEEN, width=1, codec=80), "its codec, number 80, is not read"),
        (pcm(SIXTEEN, width=8), "PCM of 64 bits"),
        (b"OggS" + bytes(60), "no WAV file of PCM"),
        (pcm(SIXTEEN, width=2, rate=999), "its rate is 999 Hz, and 1,000 to 768,000 Hz are read"),
        (
            pcm(SIXTEEN, width=2, rate=10_000_000),
            "its rate is 10,000,000 Hz, and 1,000 to 768,000 Hz are read",
        ),
        (pcm(SIXTEEN, width=2, codec=65534), "its codec, extensible, is not read|it ends within its header"),
        (pcm(SIXTEEN, width=2).replace(HEAD, b"\1\0\0\0"), "no WAV file of PCM: bad # of channels"),
        (
            pcm(SIXTEEN, width=2)[:34] + b"\0\0" + pcm(SIXTEEN, width=2)[36:],
            "no WAV file of PCM: bad sample width",
        ),
        (
            pcm(SIXTEEN, width=2)[:40] + b"\xf0\xff\xff\xff" + SIXTEEN,
            "states 2,147,483,640 samples and holds 8",
        ),
        (
            pcm(SIXTEEN, width=2)[:40] + b"\xff\xff\xff\xff" + SIXTEEN,
            "written to a pipe: it does not state how many samples it has",
        ),
        (
            pcm(SIXTEEN, width=2).replace(HEAD, b"\1\0\2\0"),
            "contradicts itself: 2 x 16 bits at 8,000 Hz are not 2 bytes a frame and 16,000 a second",
        ),
        (
            pcm(SIXTEEN, width=2).replace(struct.pack("<I", 8_000), struct.pack("<I", 4_000)),
            "contradicts itself: 1 x 16 bits at 4,000 Hz",
        ),
        (pcm(SIXTEEN, width=2).replace(b"\2\0\x10\0", b"\2\0\x08\0"), "contradicts itself: 1 x 8 bits"),
    ],
)
def test_what_is_no_sound_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as refused:
        read_wav(written(tmp_path / "a.wav", content))
    assert refused.value.where == str(tmp_path / "a.wav")
    assert refused.value.fix


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_wav(tmp_path / "none.wav")


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_another_rate_is_the_same_tone(rate: int, tmp_path: Path) -> None:
    def tone(rate: int) -> NDArray[np.float64]:
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)

    sound = read_wav(write_wav(tmp_path / "a.wav", tone(rate), rate=rate))
    found = sound.at(16_000)
    assert len(found) == 8_000
    middle = slice(200, -200)  # the filter runs over the ends
    np.testing.assert_allclose(found[middle], tone(16_000)[middle], atol=2e-3)
    assert sound.at(rate) is sound.samples


def test_rates_without_a_common_divisor_take_no_filter_of_their_size() -> None:
    seconds = 0.25
    tone = np.sin(2 * np.pi * 440 * np.arange(int(767_999 * seconds)) / 767_999).astype(np.float32)
    found = Sound(tone, 767_999).at(16_000)
    assert len(found) == 16_000 * seconds
    middle = slice(200, -200)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(found)) / 16_000)
    np.testing.assert_allclose(found[middle], expected[middle], atol=2e-3)


def test_a_rate_that_is_taken_for_its_neighbour_adds_no_sample() -> None:
    second = Sound(np.ones(766_001, np.float32), 766_001)
    assert len(second.at(16_000)) == 16_000


def test_a_damaged_sound_is_read_or_refused(tmp_path: Path) -> None:
    whole, chance = pcm(SIXTEEN * 20, width=2), random.Random(0)
    for _ in range(200):
        with contextlib.suppress(InputError):
            assert read_wav(written(tmp_path / "a.wav", damaged(whole, chance))).samples.any()


def test_a_sound_is_known_by_what_is_heard(tmp_path: Path) -> None:
    first = given_sound(write_wav(tmp_path / "a.wav", 0.5 * TONE))
    again = given_sound(write_wav(tmp_path / "b.wav", np.stack([0.5 * TONE] * 2, axis=1)))
    assert (first.kind, first.seconds) == ("audio", 0.05)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != given_sound(write_wav(tmp_path / "c.wav", TONE)).fingerprint
    assert first.fingerprint != given_sound(write_wav(tmp_path / "d.wav", 0.5 * TONE, rate=8_000)).fingerprint
    np.testing.assert_array_equal(sound_of(first).samples, sound_of(again).samples)
    write_wav(tmp_path / "a.wav", TONE)
    with pytest.raises(InputError, match="the sound changed since it was given") as refused:
        sound_of(first)
    assert refused.value.where == str(tmp_path / "a.wav")


def test_a_sound_that_lasts_too_long_is_named(tmp_path: Path) -> None:
    sound = given_sound(write_wav(tmp_path / "a.wav", 0.5 * TONE))
    require_within(sound, 0.05, "tiny")
    with pytest.raises(InputError, match=r"lasts 0.1 s, and tiny reads 0.04 s at most"):
        require_within(sound, 0.04, "tiny")
