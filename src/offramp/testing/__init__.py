"""Contract tests for what others add to offramp: run them on your own classes."""

from offramp.testing.machines import check_machine
from offramp.testing.policies import check_policy
from offramp.testing.transforms import check_transform
from offramp.testing.workloads import check_workload, check_workload_source
from offramp.testing.works import check_work

__all__ = [
    "check_machine",
    "check_policy",
    "check_transform",
    "check_work",
    "check_workload",
    "check_workload_source",
]
