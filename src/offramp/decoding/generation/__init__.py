"""Generating text: the loop over tokens, how a token is chosen, and what came out."""
