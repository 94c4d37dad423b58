"""The plots of all pages: SVG that stays readable on a phone, in both themes and in print."""
