"""Decoding with the model itself, and the stopwatch; policies decode here in a later version."""
