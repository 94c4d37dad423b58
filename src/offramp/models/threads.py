"""Threads of torch, for what must not import torch itself."""

from __future__ import annotations


def use_threads(count: int) -> None:
    """Let torch compute with so many threads from now on: the order of its sums depends on them."""
    import torch

    torch.set_num_threads(count)
