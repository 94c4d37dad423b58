"""Contract tests for what others add to offramp: run them on your own classes."""

from offramp.costs.machine import check_machine
from offramp.models.transforms.contract import check_transform
from offramp.policies.contract import check_policy
from offramp.workloads.registry import check_workload, check_workload_source

__all__ = [
    "check_machine",
    "check_policy",
    "check_transform",
    "check_workload",
    "check_workload_source",
]
