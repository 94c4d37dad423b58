"""Exits that are trained on what the full model says: recipes, cached states, one trainer, what it cost."""
