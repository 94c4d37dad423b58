"""Short names of policies for tables; their full texts stand below."""

from __future__ import annotations

from offramp.report.forecasts import rule_name


class PolicyNames:
    """Names one policy after another, each text always alike and no two texts the same."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def of(self, policy: str) -> str:
        """The short name of a policy's text."""
        short = name = rule_name(policy)
        place = 1
        while self._texts.setdefault(name, policy) != policy:
            place += 1
            name = f"{short} ({place})"
        return name

    def lines(self) -> list[str]:
        """ "margin, exits 20+25 = threshold:signal=margin,...", one for each that its name does not say."""
        return [f"{name} = {text}" for name, text in self._texts.items() if name != text]
