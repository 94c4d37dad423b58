"""The report page, its charts and tables, the terminal summary and `summary.json`."""

REPORT_FILE = "report.html"
"""Name of a page in the folder of what it is about."""
