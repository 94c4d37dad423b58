"""Fitting exit heads: a linear lens in closed form and small classifiers, on documents kept apart."""
