"""Contract tests for what others add to offramp: run them on your own classes."""

from offramp.testing.contracts import check_machine, check_work, check_workload, check_workload_source
from offramp.testing.policies import check_policy
from offramp.testing.transforms import check_transform

__all__ = [
    "check_machine",
    "check_policy",
    "check_transform",
    "check_work",
    "check_workload",
    "check_workload_source",
]
