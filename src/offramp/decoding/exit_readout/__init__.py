"""Reading an exit: the facts that policies decide from, and its logits."""
