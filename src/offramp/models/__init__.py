"""Loading a model and finding its stack of exits by tracing, never by class names."""
