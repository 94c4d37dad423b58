"""The report page, its charts and tables, the terminal summary and `summary.json`."""
