"""The sections of the report page, in reading order."""
