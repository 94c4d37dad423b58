"""Studies: cells of models, workloads, heads, policies, transforms and machines, run and compared."""
