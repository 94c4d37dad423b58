"""`math`: word problems and arithmetic made by the package reasoning-gym."""

from __future__ import annotations

from offramp.errors import WorkloadError
from offramp.workloads.source import WorkloadSource
from offramp.workloads.workload import Document, Workload

LICENCE = "Apache-2.0"
SEED = 20260323
PROBLEMS_PER_FAMILY = 12
FAMILIES = (
    "basic_arithmetic",
    "bitwise_arithmetic",
    "calendar_arithmetic",
    "chain_sum",
    "count_primes",
    "fraction_simplification",
    "gcd",
    "gsm_symbolic",
    "lcm",
    "leg_counting",
    "number_sequence",
    "prime_factorization",
    "simple_equations",
    "time_intervals",
)


def load_math(argument: str = "") -> Workload:
    """Problems of several families with a fixed seed, one of each family in turn; the model answers them.

    Raises WorkloadError if the extra is not installed.
    """
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise WorkloadError(
            f"the workload 'math' needs the package {error.name}", fix="pip install 'offramp[math]'"
        ) from error
    columns = [
        [item["question"] for item in reasoning_gym.create_dataset(name, size=PROBLEMS_PER_FAMILY, seed=SEED)]
        for name in FAMILIES
    ]
    return Workload(
        name="math",
        mode="generation",
        documents=tuple(
            Document(f"{name}-{place + 1}", column[place])
            for place in range(PROBLEMS_PER_FAMILY)
            for name, column in zip(FAMILIES, columns, strict=True)
        ),
        licence=LICENCE,
        source=f"reasoning-gym {reasoning_gym.__version__}, seed {SEED}",
        chat=True,
    )


MATH = WorkloadSource(
    name="math",
    load=load_math,
    mode="generation",
    documents=f"{PROBLEMS_PER_FAMILY * len(FAMILIES)} problems",
    licence=LICENCE,
    description=f"word problems and arithmetic of {len(FAMILIES)} families (needs offramp[math])",
)
