"""Default sizes of a trace, in tokens."""

DEFAULT_TOKENS = 2048
DEFAULT_CONTEXT = 512
