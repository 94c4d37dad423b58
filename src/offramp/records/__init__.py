"""Records: what is written to files and read back, typed once, and the one way to read each kind."""
