"""Models larger than memory: a skeleton without weights, and its layers read from disk one at a time."""
