"""Driving a model layer by layer: its own embeddings, masks and arguments, its layers called one by one."""
