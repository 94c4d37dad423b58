"""Requests that arrive at a server: what exits change at which load, predicted and served."""
