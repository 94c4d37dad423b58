"""offramp: would early-exit decoding pay on your model, your workload and your machine?

A whole answer   run, Findings
Models, texts    load_model, wrap, Model, load_workload, workload_of, Workload, Document, Given, text_groups
Measuring        trace, Trace, score, ScoreCard, drawn_figures, DrawnFigure, passages,
                 fit_heads, import_heads
Policies         parse_policy, ExitPolicy, replay, frontier, ranking (once called league), judge, predict
With a guarantee tune, tune_tasks, Tuned, TunedTasks
Decoding         generate, Generation, early_exit, execute, Execution, rerun, RerunResult, bench
Under load       load, Ladder
Machines         find_machine, measure_hardware
Training         train_exits, TrainedExits, Regularisation, train_gates, exit_scores, ExitScoreCallback,
                 documents_seen, record_training
Many models      read_study, Study, compare, Comparison
Errors           OfframpError, InputError

These names are public, and offramp.testing for what you add; the packages are how they are built. All is
imported when it is first used, so that reading a trace never loads torch.
"""

from __future__ import annotations

import importlib
from types import FunctionType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The module of each public name, ":" and its name there if that is another.
_HOMES = {
    "Model": "offramp.models.model",
    "load_model": "offramp.tracing.loading",
    "wrap": "offramp.models.wrapping",
    "exit_scores": "offramp.training.exit_scores",
    "ExitScoreCallback": "offramp.training.exit_scores",
    "Workload": "offramp.workloads.workload",
    "Given": "offramp.kit.given",
    "Document": "offramp.workloads.workload",
    "text_groups": "offramp.workloads.shared_text:groups_of_documents",
    "documents_seen": "offramp.workloads.registry",
    "record_training": "offramp.models.training_record",
    "load_workload": "offramp.workloads.registry",
    "workload_of": "offramp.workloads.given",
    "Trace": "offramp.tracing.trace",
    "trace": "offramp.tracing.tracer",
    "ScoreCard": "offramp.scoring.card",
    "score": "offramp.scoring.scoring",
    "drawn_figures": "offramp.scoring.scoring",
    "DrawnFigure": "offramp.scoring.scoring",
    "ExitPolicy": "offramp.policies.policy",
    "parse_policy": "offramp.policies.grammar",
    "replay": "offramp.policies.replay",
    "frontier": "offramp.policies.frontier",
    "judge": "offramp.tuning.replayed_verdicts",
    "ranking": "offramp.tuning.ranking",
    "league": "offramp.tuning.ranking:ranking",  # what a ranking was called before
    "tune": "offramp.decoding.execution.tune",
    "tune_tasks": "offramp.decoding.execution.tune",
    "TunedTasks": "offramp.decoding.execution.tune",
    "Tuned": "offramp.tuning.tuned",
    "predict": "offramp.tuning.predict",
    "fit_heads": "offramp.tracing.fitting.fit",
    "train_exits": "offramp.training.train",
    "TrainedExits": "offramp.training.train",
    "Regularisation": "offramp.training.request",
    "train_gates": "offramp.training.gate_training",
    "import_heads": "offramp.heads.importing.imports",
    "find_machine": "offramp.costs.machine_registry",
    "measure_hardware": "offramp.timing.local_profile",
    "run": "offramp.runs.request",
    "Findings": "offramp.report.run_findings",
    "passages": "offramp.studies.work.trace",
    "bench": "offramp.timing.bench",
    "load": "offramp.serving.request",
    "Ladder": "offramp.serving.contenders",
    "generate": "offramp.decoding.generation.generate",
    "execute": "offramp.decoding.execution.execution:execute_prompts",
    "Execution": "offramp.decoding.execution.execution",
    "rerun": "offramp.decoding.rerun.rerunner",
    "RerunResult": "offramp.decoding.rerun.rerunner",
    "early_exit": "offramp.decoding.generation.early_exit",
    "Study": "offramp.studies.study_checks",
    "read_study": "offramp.studies.study_checks",
    "Comparison": "offramp.studies.comparison.results",
    "compare": "offramp.studies.comparison.reading:read_comparison",
    "Generation": "offramp.decoding.generation.result",
    "InputError": "offramp.errors",
    "OfframpError": "offramp.errors",
}

if TYPE_CHECKING:
    from offramp.costs.machine_registry import find_machine
    from offramp.decoding.execution.execution import Execution
    from offramp.decoding.execution.execution import execute_prompts as execute
    from offramp.decoding.execution.tune import TunedTasks, tune, tune_tasks
    from offramp.decoding.generation.early_exit import early_exit
    from offramp.decoding.generation.generate import generate
    from offramp.decoding.generation.result import Generation
    from offramp.decoding.rerun.rerunner import RerunResult, rerun
    from offramp.errors import InputError, OfframpError
    from offramp.heads.importing.imports import import_heads
    from offramp.kit.given import Given
    from offramp.models.model import Model
    from offramp.models.training_record import record_training
    from offramp.models.wrapping import wrap
    from offramp.policies.frontier import frontier
    from offramp.policies.grammar import parse_policy
    from offramp.policies.policy import ExitPolicy
    from offramp.policies.replay import replay
    from offramp.report.run_findings import Findings
    from offramp.runs.request import run
    from offramp.scoring.card import ScoreCard
    from offramp.scoring.scoring import DrawnFigure, drawn_figures, score
    from offramp.serving.contenders import Ladder
    from offramp.serving.request import load
    from offramp.studies.comparison.reading import read_comparison as compare
    from offramp.studies.comparison.results import Comparison
    from offramp.studies.study import Study
    from offramp.studies.study_checks import read_study
    from offramp.studies.work.trace import passages
    from offramp.timing.bench import bench
    from offramp.timing.local_profile import measure_hardware
    from offramp.tracing.fitting.fit import fit_heads
    from offramp.tracing.loading import load_model
    from offramp.tracing.trace import Trace
    from offramp.tracing.tracer import trace
    from offramp.training.exit_scores import ExitScoreCallback, exit_scores
    from offramp.training.gate_training import train_gates
    from offramp.training.request import Regularisation
    from offramp.training.train import TrainedExits, train_exits
    from offramp.tuning.predict import predict
    from offramp.tuning.ranking import ranking
    from offramp.tuning.ranking import ranking as league
    from offramp.tuning.replayed_verdicts import judge
    from offramp.tuning.tuned import Tuned
    from offramp.workloads.given import workload_of
    from offramp.workloads.registry import documents_seen, load_workload
    from offramp.workloads.shared_text import groups_of_documents as text_groups
    from offramp.workloads.workload import Document, Workload

__all__ = [
    "Comparison",
    "Document",
    "DrawnFigure",
    "Execution",
    "ExitPolicy",
    "ExitScoreCallback",
    "Findings",
    "Generation",
    "Given",
    "InputError",
    "Ladder",
    "Model",
    "OfframpError",
    "Regularisation",
    "RerunResult",
    "ScoreCard",
    "Study",
    "Trace",
    "TrainedExits",
    "Tuned",
    "TunedTasks",
    "Workload",
    "bench",
    "compare",
    "documents_seen",
    "drawn_figures",
    "early_exit",
    "execute",
    "exit_scores",
    "find_machine",
    "fit_heads",
    "frontier",
    "generate",
    "import_heads",
    "judge",
    "league",
    "load",
    "load_model",
    "load_workload",
    "measure_hardware",
    "parse_policy",
    "passages",
    "predict",
    "ranking",
    "read_study",
    "record_training",
    "replay",
    "rerun",
    "run",
    "score",
    "text_groups",
    "trace",
    "train_exits",
    "train_gates",
    "tune",
    "tune_tasks",
    "workload_of",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its package when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'offramp' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    if isinstance(value, FunctionType):
        from offramp.kit.arguments import checked

        value = checked(value)
        value.__module__, value.__qualname__ = __name__, name  # where pickle finds it
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
