"""Decoding with the model itself: policies whose skipped layers do not run."""
