"""`offramp bench`: a policy timed beside plain decoding, with the prediction beside what was measured."""

from __future__ import annotations

from offramp.cli.bench_request import Bench
from offramp.cli.console import Output


def bench(asked: Bench, out: Output) -> None:
    """Time a policy, or accelerations alone and together."""
    if asked.combine:
        from offramp.cli.combine_stage import combine_and_show

        combine_and_show(asked, out)
    else:
        from offramp.cli.bench_stage import time_and_show

        time_and_show(asked, out)
