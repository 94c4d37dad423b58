"""FLOPs and bytes of a model shape: arithmetic on data."""
