"""Of the libraries' warnings those are left out that are known by what they say."""

from __future__ import annotations

import logging

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

from offramp.models.process import quiet_downloads, silence_torchao


@pytest.mark.parametrize(
    ("logger", "message", "shown"),
    [
        ("torchao", "Failed to load /x/_C.so: no such", False),
        ("torchao", "the tensor is on another device", True),
        (
            "torch.utils._pytree",
            "%s is an Enum subclass and is now natively supported by torch.compile as an opaque value type.",
            False,
        ),
        ("torch.utils._pytree", "something else", True),
    ],
)
def test_only_the_warnings_of_torchaos_import_are_left_out(
    logger: str, message: str, shown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    silence_torchao()
    own = logging.getLogger(logger)
    own.addHandler(caplog.handler)
    own.warning(message, *["x"] * message.count("%s"))
    own.removeHandler(caplog.handler)
    assert bool(caplog.records) is shown


@pytest.mark.parametrize("terminal", [False, True])
def test_downloads_draw_bars_on_terminals_alone(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    enable_progress_bars()  # whatever ran before in this process
    with quiet_downloads():
        assert are_progress_bars_disabled() is not terminal
    assert not are_progress_bars_disabled()
