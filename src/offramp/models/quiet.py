"""Keeping libraries from logging what no user of offramp can act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TORCHAO_LOGGERS = ("torchao", "torch.utils._pytree")
"""They warn, at the import of torchao, of its kernels for accelerators that are not there."""
TORCHAO_NOISE = ("Failed to load ", "is an Enum subclass and is now natively supported by torch.compile")
"""What these warnings have in them."""


def silence_torchao() -> None:
    """Leave out from now on, by what they say, the warnings of torchao's import; it has no other effect."""
    for name in TORCHAO_LOGGERS:
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(part in str(record.msg) for part in TORCHAO_NOISE)


@contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Run with only the errors of some loggers."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Run without transformers' progress bars and warnings, and those of torchao, which it may import."""
    import transformers

    silence_torchao()

    logging: Any = transformers.utils.logging
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
