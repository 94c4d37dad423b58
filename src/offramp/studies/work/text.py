"""The text of a lab, made of what is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offramp.records.typed import to_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import require_planned, require_same

if TYPE_CHECKING:
    from offramp.lab.text.folder import LabText

TEXT = "text"
"""The folder of the text in its task's folder."""


def text_of(task: Task) -> LabText:
    """The text that a task trains or measures on, every byte of it looked at.

    Raises InputError or DamagedFileError if it is not there or not whole, OfframpError for another one.
    """
    from offramp.lab.text.folder import read_text_folder

    found = read_text_folder(task.sources["text"])
    require_same("the text", task.sources["text"], found.fingerprint, task.recipe["text"])
    return found


class TextWork:
    """Leaves `text/`, a folder of `offramp lab text`. Sources that are not here are named in its record."""

    kind = "text"

    def run(self, task: Task, context: Context) -> None:
        """Make it. Raises what `offramp.lab.text.make.make_text` raises, and OfframpError for other versions
        of the sources than the recipe's.
        """
        from offramp.lab.text.make import make_text
        from offramp.lab.text.request import TextRequest

        require_planned(task)
        request = TextRequest.model_validate_json(task.sources["request"])
        for source in request.all_sources:
            found, planned = source.version(request.places), task.recipe["sources"][source.name]
            require_same(f"the source {source.name}", "text", found or "not here", planned or "not here")
        made = make_text(request, context.folder / TEXT, overwrite=True)
        record = to_json(made.record)
        told = {key: record[key] for key in ("sources", "absent", "tokens", "vocabulary")}
        context.write_result({"fingerprint": made.fingerprint, **told})
