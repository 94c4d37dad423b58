"""Sources of text and prompts, with licence and fingerprint; knows nothing of models."""
