"""The defaults that several packages share: each is declared here and nowhere else."""

from __future__ import annotations

# What is asked of a policy.

WORTH = 0.05
"""The gain in speed from which on early exit is worth its trouble."""

FLOORS = (0.99, 0.95, 0.90)
"""Floors on agreement that are answered for, the strictest first."""

MAIN_FLOOR = 0.95
"""Agreement at which is answered first, and at which other machines and break-even prices are asked for."""

# How sure an answer is.

DELTA = 0.1
"""The chance that a certificate is wrong; of a run or a study, that a headline is."""

METHOD = "wsr"
"""The test behind a certificate: the betting bound."""

DRAWS = 1000
"""Draws of the bootstrap."""

SEED = 0
"""Of everything that is drawn: documents' roles, the bootstrap, the order of turns, weights to start from."""

# What a command works on.

DEFAULT_MODEL = "smollm2"
"""The bundled model that is taken where none is named."""

DEFAULT_WORKLOADS = ("prose:short", "code:short")
"""The short items, of a run that names no text: enough documents of each to certify a floor on."""

LOCAL = "local"
"""The machine at hand, where no other is named."""

BYTES = "bytes moved"
"""The machine that counts bytes instead of seconds, where none is named or the model cannot be timed."""

# What is decoded.

NEW_TOKENS = 64
"""New tokens of a generation, at most."""

DRAFT_LENGTH = 4
"""Tokens drafted before a verification, at most."""

OPENING_TOKENS = 32
"""Tokens of a text's start that is decoded on for a certificate."""

CERTIFIED_TOKENS = 32
"""New tokens of an answer that is decoded for a certificate, at most."""

# What is timed.

PROMPT_TOKENS = 64
"""Tokens of a document's start that make a prompt."""

TIMED_TOKENS = 32
"""New tokens after each prompt."""

TIMED_PROMPTS = 8
"""Prompts that a study decodes for one cell."""

ROUNDS = 3
"""How often a study or a run decodes each prompt, at most."""

TIMING_SECONDS = 120.0
"""Of one timing, unless its question is answered sooner."""

FEWEST_VISITS = 2
"""Made whatever the budget: of two prompts there is an interval, however wide."""

FEWEST_PROMPTS = 6
"""Prompts that an answer of a timing needs: of fewer, a chance agreement makes the interval narrow."""

HARDWARE_SECONDS = 45.0
"""Of timing a machine's parts on request."""

PROFILE_SECONDS = 12.0
"""Of timing a machine's parts on the way to something else."""

# What is fitted and trained.

SHORTLIST = 2048
"""Tokens of the short list, unless heads bring another or the vocabulary is smaller."""

CANDIDATES = 8
"""Tokens whose logits a candidate head looks at: the best ones of the candidate exit."""

NETWORK_UNITS = 64
"""Hidden units of a classifier that is a small network."""

TRAINING_MINUTES = 20.0
"""Of a training that says neither steps nor minutes."""

TRAINING_ROWS = 192
"""Positions of one step of a training: random ones, of which so few tell as much of the gradient as whole
contexts."""

# What is scored.

EAS_ALPHA = 0.5
"""Weight of the similarity in the Early-exit Adaptability Score."""

# How long a study waits.

STALL_SECONDS = 300.0
"""A worker that shows no sign of life for so long is taken for dead."""
