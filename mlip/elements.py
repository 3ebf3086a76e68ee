"""What the whole package knows of chemical elements."""

MAX_ELEMENT = 118
"""The highest atomic number."""
