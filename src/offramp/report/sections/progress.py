"""What a page says on top while its run goes on."""

from __future__ import annotations

from offramp.report.formats import listed
from offramp.report.markup import element, text
from offramp.report.run_result import RunResult


def progress_banner(run: RunResult) -> str:
    """The stages done and to come; nothing when the run is over."""
    if run.progress is None:
        return ""
    done, to_come = run.progress.done, run.progress.to_come
    lines = [f"Still running: {run.progress.running}."]
    if done:
        lines.append(f"Done: {listed(list(done))}.")
    if to_come:
        lines.append(f"To come: {listed(list(to_come))}.")
    lines.append(
        "This page holds what is there so far; load it again for more. If the run was stopped, the same "
        "command goes on where it stopped."
    )
    first = element("strong", text(lines[0]))
    return element(
        "div", element("p", first + " " + text(" ".join(lines[1:]))), class_="running", role="status"
    )
