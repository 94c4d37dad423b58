"""Trainings on one thread, whose weights are the same each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from offramp.models.memory import with_threads


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with with_threads(1):
        yield
