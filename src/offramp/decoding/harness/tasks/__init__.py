"""Tasks for lm-eval that need no network: a YAML file each, with questions made from installed packages."""
