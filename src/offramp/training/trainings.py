"""The kinds of trainings of exits, by name."""

from __future__ import annotations

from offramp.kit.request import Kinds
from offramp.training.gate_request import GateTraining
from offramp.training.request import BlockTraining, ExecutedTraining, LensTraining, RegularisedTraining

TRAININGS = Kinds(
    "lens: an affine map. block: a small network behind one. executed: the K,V maps of --from, by what they "
    "do to tokens that stay. gate: what decides who leaves. regularised: the model itself, whose trained "
    "form is the output.",
    {
        request.kind: request
        for request in (BlockTraining, LensTraining, ExecutedTraining, RegularisedTraining, GateTraining)
    },
)
