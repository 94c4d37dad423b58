"""The endpoints of one small model, as docs/lab/preregistered.md fixes them."""
