"""Names of the files that a report is made of."""

from __future__ import annotations

REPORT_FILE = "report.html"
