"""The streaming pass that measures every exit, its statistics kernels and the `Trace` on disk."""
