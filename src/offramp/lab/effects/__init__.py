"""What each factor does to small models that were trained one factor apart: docs/lab/preregistered.md."""
