"""Exit policies and their replay on a trace; the same object decides in replay and in decoding."""
