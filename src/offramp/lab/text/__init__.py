"""Text that small models learn from: dealt to parts by whole works, a quarter made with known depth."""
