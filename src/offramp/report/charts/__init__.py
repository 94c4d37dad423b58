"""Small SVG charts that stay readable on a phone, in both themes and in print."""
