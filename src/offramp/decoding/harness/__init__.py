"""The model type `offramp` of EleutherAI's lm-evaluation-harness; see docs/harness.md."""
