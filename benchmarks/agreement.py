"""What agreement does to a text: answers of a model under ever bolder thresholds, beside its own.

    python benchmarks/agreement.py                     smollm2, twelve short questions, 40 new tokens each

Keys and values are exact (`recompute`), so that what differs is what the exits say. The thresholds check the
whole head three times and save no time: they are here for their agreement alone. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import offramp
from offramp.decoding.generation.generate import FULL_MODEL, generate_batch
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.generation.result import Generation
from offramp.decoding.judging import free_running
from offramp.decoding.options import DecodingOptions

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three fruits that are red.",
    "How do I boil an egg?",
    "Write one sentence about the sea.",
    "What does a librarian do?",
    "Give me a tip for learning a language.",
    "What is photosynthesis?",
    "Who wrote Romeo and Juliet?",
    "Explain what a prime number is.",
    "Suggest a name for a cat and say why.",
    "What should I pack for a day at the beach?",
)
VALUES = (0.999, 0.99, 0.97, 0.9, 0.8)
"""Of the largest probability, above which a token leaves."""


def main() -> None:
    """Decode, judge and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--exits", default="20+25+28")
    parser.add_argument("--values", type=float, nargs="+", default=VALUES)
    parser.add_argument("--new-tokens", type=int, default=40)
    asked = parser.parse_args()
    model = offramp.load_model(asked.model)
    prompts = prompt_batch(model, QUESTIONS, chat=True)
    ids = [row[mask.bool()].tolist() for row, mask in zip(prompts.ids, prompts.mask, strict=True)]

    def decode(options: DecodingOptions) -> Sequence[Generation]:
        return generate_batch(
            model, prompts.ids, prompts.mask, replace(options, new_tokens=asked.new_tokens)
        ).rows

    def kept(answers: Sequence[Generation], places: Sequence[int]) -> float:
        """The agreement of some of the answers, all of their tokens together."""
        tokens, plain = ([side[place].tokens for place in places] for side in (answers, own))
        judged = free_running(model, [ids[place] for place in places], tokens, plain).agreement.value
        assert judged is not None  # every answer has tokens
        return judged

    own = decode(FULL_MODEL)
    found = []
    for value in asked.values:
        policy = f"threshold:signal=max_prob,value={value},exits={asked.exits}"
        answers = decode(DecodingOptions.read(policy, kv="recompute", batching="rebatch"))
        same = sum(answer.tokens == plain.tokens for answer, plain in zip(answers, own, strict=True))
        agreement = kept(answers, range(len(answers)))
        found.append({"policy": policy, "agreement": agreement, "unchanged": same, "of": len(answers)})
        print(f"\n{policy}: {agreement:.1%} of the tokens, {same} of {len(answers)} answers unchanged")
        for place, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True)):
            print(
                f"{question}\n  {kept(answers, [place]):4.0%}  {answer.text!r}\n  own   {own[place].text!r}"
            )
    print(json.dumps({"model": model.name, "policies": found}))


if __name__ == "__main__":
    main()
