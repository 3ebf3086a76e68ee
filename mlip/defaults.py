"""What is taken where nothing is said."""

DEFAULT_POTENTIAL = "organics-energy"
"""The shipped model of calculators, ``mlip relax`` and ``mlip md``."""
