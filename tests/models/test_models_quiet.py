"""Of the libraries' warnings those are left out that are known by what they say."""

from __future__ import annotations

import logging

import pytest

from offramp.models.process import silence_torchao


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
