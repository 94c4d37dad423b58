"""The kinds of exit policy, one family of rules per file."""
