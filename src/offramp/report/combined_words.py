"""Combined accelerations in words: one sentence of advice, and what the interaction says."""

from __future__ import annotations

from offramp.decoding.measurement.combined import PLAIN_NAME, Combination, CombineResult, Effect, Quality
from offramp.decoding.measurement.results import Interval
from offramp.report.formats import (
    counted,
    decimal,
    listed,
    percent,
    timed_interval,
    timed_text,
    value_text,
    whole_percent,
)

NOTHING = 0.06
"""How far an interval may reach from 1 for a part that changes nothing."""

EFFECTS: dict[Effect | None, str] = {
    "get in each other's way": "In each other's way",
    "multiply": "They multiply",
    "help each other": "They help each other",
    None: "Not known well enough to say",
}


def advice(result: CombineResult) -> str:
    """What to use, in one sentence, from intervals and the floor of quality; that nothing pays is an answer.

    Of what is surely faster than plain decoding and keeps the floor, the fastest is taken, and every part
    that does not surely add to the others is left out of it.
    """
    if result.defects:
        return f"No advice: this measurement has a defect: {result.defects[0]}."
    timed = [one for one in result.combinations if one.parts and one.speedup is not None]
    if not timed:
        return "No advice: none of these accelerations could be timed on this model."
    faster = [one for one in timed if surely_above(one.speedup)]
    if not faster:
        best = max(timed, key=speed)
        return (
            f"Use plain decoding: nothing is surely faster, and the best of it, {best.name}, comes to "
            f"{times_plain(best.speedup)}."
        )
    good = [one for one in faster if keeps(one, result.floor)]
    if not good:
        best = max(faster, key=lambda one: kept_share(one).value)
        return (
            f"Use plain decoding: everything that is faster changes the answers, and {best.name} "
            f"({times_plain(best.speedup)}), which changes them least, chooses {kept_text(best)}, where "
            f"{whole_percent(result.floor)} were asked for."
        )
    best = _without_idle_parts(result, max(good, key=speed), good)
    return f"Use {_name(best)}, {times_plain(best.speedup)} at {kept_text(best)}{_why(result, best)}."


def effect_sentences(result: CombineResult) -> list[str]:
    """What the interactions say, one sentence for each effect that there is, with its combinations.

    Nothing of a measurement with a defect.
    """
    found: list[str] = []
    if result.defects:
        return found
    for effect, words in EFFECTS.items():
        names = [
            f"{one.name} ({_bracketed(one.interaction)})"
            for one in result.combinations
            if one.interaction is not None and one.effect == effect
        ]
        if names:
            found.append(f"{words}: {listed(names)} of the product of the single gains.")
    return found


def times_plain(found: Interval | None) -> str:
    """A speedup over plain decoding: "1.52 × (1.48 to 1.55)"."""
    if found is None:
        return "–"
    limits = timed_interval(found.value, found.low, found.high, decimal)
    return f"{decimal(found.value)} ×{f' ({limits})' if limits else ''}"


def interval(found: Interval | None) -> str:
    """A ratio: "0.97 (0.95 to 0.99)", "–" without one."""
    if found is None:
        return "–"
    return timed_text(found.value, found.low, found.high, decimal)


def kept_text(one: Combination) -> str:
    """ "97.8 % (96.9 to 98.5 %) of the full model's tokens"; of how few answers, without an interval."""
    found = kept_share(one)
    of = f"{value_text(found.value, found.low, found.high, percent)} of the full model's tokens"
    assert one.quality is not None  # or there was no share
    answers = counted(one.quality.free_running.prompts, "answer")
    known = found.low is not None or one.name == PLAIN_NAME
    return of if known else f"{of} ({answers}, too few for an interval)"


def shared_text(quality: Quality) -> str:
    """Share of an answer before the first token that is not the untransformed model's."""
    return value_text(quality.shared.value, quality.shared.low, quality.shared.high, percent)


def kept_share(one: Combination) -> Interval:
    """Share of the untransformed model's own tokens that it chooses too; none if that was not judged."""
    return Interval(0.0) if one.quality is None else one.quality.forced_agreement


def keeps(one: Combination, floor: float) -> bool:
    """Whether it chooses so many of the full model's tokens, by the lower limit where there is one."""
    share = kept_share(one)
    return (share.value if share.low is None else share.low) >= floor


def surely_above(found: Interval | None, line: float = 1.0) -> bool:
    """Whether the whole interval lies above."""
    return found is not None and found.low is not None and found.low > line


def surely_below(found: Interval | None, line: float = 1.0) -> bool:
    """Whether the whole interval lies below."""
    return found is not None and found.high is not None and found.high < line


def speed(one: Combination) -> float:
    """The speedup's value."""
    return 0.0 if one.speedup is None else one.speedup.value


def _without_idle_parts(result: CombineResult, best: Combination, good: list[Combination]) -> Combination:
    """The combination less the parts that do not surely add to the others, the idlest first."""
    for added in sorted(best.on_top, key=lambda added: added.speedup.value):
        rest = result.combination(*(part for part in best.parts if part != added.part))
        if not surely_above(added.speedup) and rest in good:
            assert rest is not None  # it is in the list
            return _without_idle_parts(result, rest, good)
    return best


def _name(one: Combination) -> str:
    return f"{one.name} alone" if len(one.parts) == 1 else f"{one.name} together"


def _why(result: CombineResult, best: Combination) -> str:
    """How the parts go together, and what further ones would do."""
    said = []
    if best.interaction is not None:
        effect = f"they {best.effect}" if best.effect else "whether they multiply is not known well enough"
        said.append(f"{effect} ({_bracketed(best.interaction)} of the product of their gains)")
    for name in result.accelerations:
        more = result.combination(*best.parts, name)
        added = next((one.speedup for one in more.on_top if one.part == name), None) if more else None
        if name not in best.parts and more is not None and added is not None:
            said.append(f"{name} on top {_effect_on_top(name, more, added, result.floor)}")
    return f": {', '.join(said)}" if said else ""


def _bracketed(found: Interval | None) -> str:
    """A ratio within brackets: "0.97, 0.95 to 0.99"."""
    return interval(found).replace(" (", ", ").removesuffix(")")


def _effect_on_top(name: str, more: Combination, added: Interval, floor: float) -> str:
    plural = name.endswith("s")
    if surely_below(added):
        return f"{'cost' if plural else 'costs'} time ({_bracketed(added)})"
    if not surely_above(added):
        narrow = surely_below(added, 1.0 + NOTHING) and surely_above(added, 1.0 - NOTHING)
        verb = "change" if plural else "changes"
        return f"{verb} nothing{'' if narrow else ' that can be told'} ({_bracketed(added)})"
    if not keeps(more, floor):
        kept = percent(kept_share(more).value)
        return f"would add speed ({_bracketed(added)}) and keep only {kept} of the tokens"
    return f"{'add' if plural else 'adds'} little ({_bracketed(added)})"
