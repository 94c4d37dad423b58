"""Default sizes of a trace, in tokens."""

DEFAULT_TOKENS = 1600
"""50 documents of 32 tokens: what three workloads of a small model allow in three minutes on two cores."""

DEFAULT_CONTEXT = 512
