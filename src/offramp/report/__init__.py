"""The report page, its charts and tables, the terminal summary and `summary.json`."""

REPORT_FILE = "report.html"
"""Name of a page in the folder of what it is about."""
TRACES = "traces"
"""Where a run's traces are found in its folder, by model and workload."""
COMBINED_FILE = "combined.json"
"""What `offramp bench --combine -o` adds to a run's folder."""
