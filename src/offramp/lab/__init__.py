"""Training models that exit well: how exits stand while a model trains. Knows nothing of studies."""
