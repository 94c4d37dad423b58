"""What can be done to a model at load: weight-only quantisation and depth pruning, by one grammar."""
