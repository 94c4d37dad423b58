"""Who serves: the full model, its cut head, policies, a ladder of them; and where their tokens leave."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError, PolicyError
from offramp.policies.charge import run_of
from offramp.policies.decisions import task_of
from offramp.policies.grammar import parse_policy, parse_policy_for
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import Needs
from offramp.policies.rules.short_list import with_short_head
from offramp.policies.short_names import short_name
from offramp.serving.results import NOT_CERTIFIED
from offramp.tracing.trace import Trace
from offramp.tuning.predict import named_policy
from offramp.tuning.tuned import Tuned

Integers = NDArray[np.int64]
PLAIN, SHORT_LIST, POLICY, LADDER = "plain", "short list", "policy", "ladder"
"""Roles of those that serve; the first two have no exits."""


@dataclass(frozen=True)
class Ladder:
    """Policies by the length of the queue: a request keeps the one that it was admitted with.

    rungs: from how many requests on, waiting or being served, and the policy: a text, the file of a tuned
    policy, or a policy. The first is from 0 on.

    Where a policy changed within an answer, its certificate would say nothing of that answer. What is fixed
    at admission holds rung by rung, as long as which texts arrive does not depend on the queue.

    Raises InputError for queues that do not rise from 0.

    >>> offramp.Ladder([(0, "never"), (8, "static:exit=20")])
    Ladder(0:never,8:static:exit=20)
    """

    rungs: Sequence[tuple[int, str | ExitPolicy]]

    def __post_init__(self) -> None:
        queues = [queue for queue, _ in self.rungs]
        if queues[:1] != [0] or queues != sorted(set(queues)):
            raise InputError(
                f"the rungs of the ladder begin at queues of {', '.join(map(str, queues)) or 'nothing'}",
                where="--ladder",
                fix="let them rise from 0, as 0:never,8:static:exit=20",
            )

    def __repr__(self) -> str:
        return f"Ladder({self})"

    def __str__(self) -> str:
        return ",".join(f"{queue}:{policy}" for queue, policy in self.rungs)

    @classmethod
    def read(cls, text: str) -> Ladder:
        """The ladder that `0:never,8:policy.json` says. Raises InputError, PolicyError among them."""
        parts = [re.fullmatch(r"(\d{1,9}):(.+)", part) for part in re.split(r",(?=[^,:=]+:)", text)]
        if None in parts:
            fix = "write from which queue on, and the policy: 0:never,8:static:exit=20"
            raise InputError(f"{text!r} is no ladder", where="--ladder", fix=fix)
        rungs = [(int(part[1]), part[2]) for part in parts if part]
        for _, policy in rungs:
            parse_policy(policy)
        return cls(rungs)


@dataclass(frozen=True)
class Rung:
    """One policy, as whole documents were replayed with it.

    exits: int64 [tokens], where each is let go. kept: bool [stops + 1, tokens], whether the output at each
    stop, an exit below L where it may leave, and at L, is the full model's. floor: the agreement that it is
    certified to keep, None without a certificate. queue: of a ladder, from how many requests on it is taken.
    """

    policy: ExitPolicy
    exits: Integers
    needs: Needs
    kept: NDArray[np.bool_]
    stops: tuple[int, ...]
    layers: int
    floor: float | None = None
    queue: int = 0

    @property
    def loss(self) -> float:
        """Share of its tokens that are not the full model's, where nothing holds them back."""
        places = np.searchsorted(np.array([*self.stops, self.layers]), self.exits)
        return 1.0 - float(self.kept[places, np.arange(len(self.exits))].mean())

    @property
    def promise(self) -> float:
        """The loss that it may have: of a certificate, else that of its own replay."""
        return self.loss if self.floor is None else 1.0 - self.floor

    @property
    def certificate(self) -> str:
        """In words."""
        said = NOT_CERTIFIED if self.floor is None else f"certified for {100 * self.floor:g} %"
        return said if self.stops else "full depth"


@dataclass(frozen=True)
class LoadContender:
    """One way to serve: with one policy, or with those of a ladder from cautious to bold."""

    name: str
    role: str
    rungs: tuple[Rung, ...]

    @property
    def layers(self) -> int:
        """L."""
        return self.rungs[0].layers

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Exits below L of any rung, ascending."""
        return tuple(sorted({stop for rung in self.rungs for stop in rung.stops}))

    @property
    def facts(self) -> Needs:
        """What is read at each of them."""
        read = {
            stop: [fact for rung in self.rungs for fact in rung.needs.get(stop, ())] for stop in self.stops
        }
        return {stop: tuple(dict.fromkeys(facts)) for stop, facts in read.items()}

    @property
    def text(self) -> str:
        """Its policy, or those of its rungs with their queues."""
        if self.role != LADDER:
            return str(self.rungs[0].policy)
        return ",".join(f"{rung.queue}:{rung.policy}" for rung in self.rungs)

    @property
    def without_exits(self) -> bool:
        """Whether exits have to be better than it to be worth anything."""
        return self.role in (PLAIN, SHORT_LIST)

    def rung_at(self, queue: int) -> int:
        """The rung of a request that is admitted at a queue."""
        return max(place for place, rung in enumerate(self.rungs) if queue >= rung.queue)

    @property
    def certificate(self) -> str:
        """What of it is certified, in words."""
        if self.role != LADDER:
            return self.rungs[0].certificate
        said = ", ".join(f"from {rung.queue}: {rung.certificate}" for rung in self.rungs)
        return f"{said}; rung by rung, as long as which texts come does not depend on the queue"


def admitted(policy: str | ExitPolicy | Tuned, task: str | None = None) -> tuple[ExitPolicy, float | None]:
    """The policy that a text, or the file of a tuned policy, names, and what agreement it is certified for.

    task: the workload, of which there may be a policy of its own. Raises PolicyError for one that cannot
    decide for rows that join and leave.
    """
    named, floor = named_policy(policy), None
    if isinstance(named, Tuned):
        if named.kv != "propagate" and not named.plain:
            what = f"the policy was tuned with K and V by {named.kv}, which rows of a server cannot do"
            raise PolicyError(what, where=str(policy), fix="tune it with --kv propagate")
        if named.certificate.holds and named.floor.kind == "agreement":
            floor = 1.0 - named.floor.risk
        named = named.policy
    named = named.for_task(task)
    whys = {
        "remembers earlier tokens of a document": named.remembers,
        "looks at what no decoder knows": not named.reachable,
        "learns from exit L": bool(named.final_facts),
    }
    if what := next((why for why, holds in whys.items() if holds), ""):
        raise PolicyError(
            f"{named.kind} {what}, and serves no rows that join and leave at every step",
            where=str(named),
            fix="choose a policy without memory, such as threshold:... or static:...",
        )
    return named, floor


def replayed(trace: Trace, policy: str | ExitPolicy | Tuned) -> Rung:
    """A policy on a trace. Raises PolicyError for one that does not fit it, or is not `admitted`."""
    if isinstance(policy, str):
        parse_policy_for(policy, trace)
    own, floor = admitted(policy, task_of(trace))
    run, layers = run_of(trace, own), trace.layers
    stops = tuple(exit for exit in own.leaves_at(layers) if exit < layers)
    kept = run.trace.agreement[:, np.searchsorted(trace.exits, [*stops, layers])].T
    return Rung(own, run.decisions.exits, run.decisions.needs, np.asarray(kept), stops, layers, floor)


def contenders_of(
    trace: Trace, policies: Sequence[str | ExitPolicy | Tuned], ladder: Ladder | None = None
) -> tuple[LoadContender, ...]:
    """Those that serve: the full model, its cut head where a policy reads a short list, policies, the ladder.

    Raises PolicyError as `replayed` does; InputError for a ladder whose later rungs leave no earlier, or read
    outputs off other heads.
    """
    if trace.shape.encoder is not None:
        raise InputError(
            "what is read before a request's first token, a source, a sound or a picture, has no price here",
            where="the trace",
            fix="load a trace of texts; offramp run says what exits bring a request alone",
        )
    plain = replayed(trace, "never")
    rungs = [replayed(trace, policy) for policy in policies]
    climbed = [
        replace(replayed(trace, policy), queue=queue) for queue, policy in (ladder.rungs if ladder else ())
    ]
    found = [LoadContender("plain", PLAIN, (plain,))]
    if any(rung.policy.short_list for rung in (*rungs, *climbed)):
        found.append(LoadContender("cut head", SHORT_LIST, (replayed(trace, with_short_head(plain.policy)),)))
    known = [str(contender.rungs[0].policy) for contender in found]
    for rung in rungs:
        own = [str(contender.rungs[0].policy) for contender in found if contender.role == POLICY]
        if str(rung.policy) in own:
            raise InputError(f"the policy {rung.policy} is given twice", where="--policy", fix="give it once")
        if str(rung.policy) not in known:
            name, text = short_name(rung.policy), str(rung.policy)
            taken = any(contender.name == name for contender in found)
            found.append(LoadContender(text if taken else name, POLICY, (rung,)))
    if ladder:
        _require_rungs(climbed, f"--ladder {ladder}")
        found.append(LoadContender("ladder", LADDER, tuple(climbed)))
    return tuple(found)


def _require_rungs(rungs: Sequence[Rung], where: str) -> None:
    for rung, bolder in itertools.pairwise(rungs):
        if bolder.exits.mean() > rung.exits.mean():
            what = f"{bolder.policy} leaves later than the rung before it, {rung.policy}"
            raise InputError(what, where=where, fix="order the rungs from cautious to bold")
    if len({(rung.policy.short_list, rung.policy.short_head) for rung in rungs if rung.stops}) > 1 or any(
        rung.policy.short_head != rungs[-1].policy.short_head for rung in rungs
    ):
        fix = "put all of them into shortlist:policy=[...], or none"
        raise InputError("the rungs read outputs off different heads", where=where, fix=fix)
