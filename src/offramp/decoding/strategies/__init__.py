"""KV strategies: what becomes of the layers that a token skips."""
