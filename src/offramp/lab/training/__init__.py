"""Training small models from scratch, one factor apart."""
