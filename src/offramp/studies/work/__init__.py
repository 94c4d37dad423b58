"""What tasks do: one module for each kind, registered by name."""
