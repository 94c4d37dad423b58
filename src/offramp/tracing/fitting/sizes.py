"""Default sizes of fitting, in tokens."""

FITTING_TOKENS = 16_384
"""Enough for a lens of a hidden size of several hundred; larger models gain from more."""

LARGEST_SEED = 2**32 - 1
"""That scikit-learn takes."""

CLASSIFIER_TOKENS = 4096
"""Tokens for the classifiers at most: every exit is read out for them, and their states are kept."""
