"""Searching policies, certifying them on unseen documents, and predicting them elsewhere."""
