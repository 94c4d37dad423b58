"""Tracing layer by layer: one layer's weights in memory at a time, hidden states kept between layers."""
