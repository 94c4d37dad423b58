"""The report page: one self-contained file that answers first and explains after."""

from __future__ import annotations

from pathlib import Path

from offramp.files import write_text_atomically
from offramp.report.colours import ramp_rules
from offramp.report.formats import counted
from offramp.report.frame import FOOTER, asset, brand, whole_page
from offramp.report.markup import element, slug, text
from offramp.report.names import REPORT_FILE
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.sections.break_even import break_even_section
from offramp.report.sections.combined import combined_section
from offramp.report.sections.components import components_section
from offramp.report.sections.decoded import decoded_section
from offramp.report.sections.frontier import frontier_section
from offramp.report.sections.glossary import glossary_section
from offramp.report.sections.grid import grid_section
from offramp.report.sections.hardware import hardware_section
from offramp.report.sections.layers import layers_section
from offramp.report.sections.league import league_section
from offramp.report.sections.machines import machines_section
from offramp.report.sections.passage import passage_section
from offramp.report.sections.progress import progress_banner
from offramp.report.sections.provenance import provenance_section
from offramp.report.sections.tuned import tuned_section
from offramp.report.sections.verdict import verdict_section


def write_report(run: RunResult, folder: Path) -> Path:
    """Write `report.html` into a folder in one step and return its path.

    Raises OfframpError if the disk is full.
    """
    path = folder / REPORT_FILE
    write_text_atomically(path, render(run))
    return path


def render(run: RunResult) -> str:
    """The whole page as HTML; the same run gives the same bytes."""
    layers = max([run.layers, *[int(workload.trace.exits[-1]) for workload in run.workloads]])
    names = identities(run.workloads)
    main = (
        progress_banner(run)
        + verdict_section(run)
        + decoded_section(run)
        + combined_section(run.combined)
        + hardware_section(run)
        + "".join(workload_section(w, layers, name) for w, name in zip(run.workloads, names, strict=True))
        + provenance_section(run)
        + glossary_section()
    )
    body = (
        element("a", "Skip to the verdict", class_="skip", href="#verdict")
        + masthead(run)
        + element("main", insert_navigation(main, navigation(run.workloads, names)))
        + FOOTER
        + element("script", asset("page.js"))
    )
    title = f"Would early exit pay for {run.model_name}?"
    return whole_page(title, body, style=ramp_rules(layers))


def identities(workloads: tuple[WorkloadResult, ...]) -> list[str]:
    """One id per workload, different even if the names differ only in punctuation."""
    found: list[str] = []
    for workload in workloads:
        name = slug(workload.name)
        found.append(name if name not in found else f"{name}-{len(found) + 1}")
    return found


def masthead(run: RunResult) -> str:
    """The line at the top of the page."""
    costs = run.hardware is not None or run.heads is not None
    sections = (
        ("#verdict", "Verdict"),
        *([("#decoded", "Decoded")] if run.decoding or run.not_decoded else []),
        *([("#combined", "Combined")] if run.combined is not None else []),
        *([("#machine", "Machine")] if costs else []),
        *([("#workloads", "Workloads")] if run.workloads else []),
        ("#provenance", "Repeat"),
        ("#glossary", "Words"),
    )
    links = "".join(element("a", name, href=target) for target, name in sections)
    return element("header", brand() + element("nav", links, aria_label="Sections"), class_="masthead")


def navigation(workloads: tuple[WorkloadResult, ...], names: list[str]) -> str:
    """Links to the workloads; the script turns them into tabs."""
    links = "".join(
        element("a", text(workload.name), href=f"#workload-{name}", id_=f"tab-{name}")
        for workload, name in zip(workloads, names, strict=True)
    )
    heading = element("h2", "The workloads, one by one")
    return element("div", heading, id_="workloads") + element(
        "div", links, class_="tabs", aria_label="Workloads"
    )


def insert_navigation(main: str, tabs: str) -> str:
    """Put the tabs between the verdict and the first workload, nowhere without one."""
    verdict, separator, rest = main.partition('<section class="workload"')
    if not separator:
        return main
    return verdict + tabs + separator + rest


def workload_section(workload: WorkloadResult, layers: int, identity: str) -> str:
    """Everything about one workload."""
    card = workload.card
    traced = f"{counted(card.documents, 'document')} · {counted(card.tokens, 'token')} traced"
    facts = f"{workload.mode} mode · {traced}"
    content = (
        element("h2", text(workload.name))
        + element("p", text(facts), class_="eyebrow")
        + league_section(workload)
        + tuned_section(workload)
        + machines_section(workload)
        + break_even_section(workload)
        + passage_section(workload, layers, identity)
        + grid_section(workload.grid)
        + layers_section(workload)
        + frontier_section(workload)
        + components_section(workload)
    )
    return element(
        "section", content, class_="workload", id_=f"workload-{identity}", aria_labelledby=f"tab-{identity}"
    )
