"""Timing policies beside plain decoding, with a verdict on the measurement itself."""
