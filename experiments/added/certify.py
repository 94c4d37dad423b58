"""Is a floor kept by exits and prompt lookup in one loop? Documents of a study are decoded again with both.

    python experiments/added/certify.py MODEL STUDY_FOLDER --policy P --of Q

Those that the study decoded with the policy Q for a certificate, which neither training nor search has seen,
in an order that their names give; until the floor is certified by the project's own bound, or none is left.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean

import offramp
from measured import CERTIFICATE, KEPT, LOOKUP_CHANCE, LOOKUP_FLOOR, PLANNED, as_csv, certified_after
from offramp.decoding.execution.execution import execute_prompts
from offramp.files import sha256_of_text

GROUP = 16
DRAFTS, NEW_TOKENS = 10, 16


def documents_of(study: Path, policy: str) -> dict[str, list[int]]:
    """Prompts, token ids, of documents that a study decoded with a policy, in a fixed order."""
    found: dict[str, list[int]] = {}
    for path in (study / "executions").glob("*/*.json"):
        kept = json.loads(path.read_text())
        if kept["request"]["policy"] == policy:
            found |= {execution["document"]: execution["prompt"] for execution in kept["executions"]}
    return {name: found[name] for name in sorted(found, key=sha256_of_text)}


def main() -> None:
    """Decode, judge and keep group by group."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("study", type=Path)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--of", required=True, help="the policy whose documents are taken")
    asked = parser.parse_args()
    (heads,) = asked.study.glob("tasks/training/*/exits/exits.safetensors")
    documents = list(documents_of(asked.study, asked.of).items())[:PLANNED]
    model = offramp.load_model(asked.model, dtype="bfloat16")
    rows: list[dict[str, object]] = []
    losses: list[float] = []
    for start in range(0, len(documents), GROUP):
        names, prompts = zip(*documents[start : start + GROUP], strict=True)
        found = execute_prompts(
            model, prompts, asked.policy, kv="recompute", heads=heads, lookup=DRAFTS, new_tokens=NEW_TOKENS
        )
        for name, execution in zip(names, found, strict=True):
            wrong = len(execution.agrees) - sum(execution.agrees)
            rows.append({"document": name, "tokens": len(execution.agrees), "wrong": wrong})
        losses += [execution.loss for execution in found]
        (KEPT / CERTIFICATE).write_text(as_csv(rows))
        after = certified_after(losses, LOOKUP_FLOOR, LOOKUP_CHANCE, PLANNED)
        print(f"{len(rows)} documents, {1.0 - fmean(losses):.1%} kept, certified after {after}", flush=True)
        if after is not None:
            break


if __name__ == "__main__":
    main()
