"""The shared model test kit: laws that every potential of this package has to obey, for our tests and for yours.

    from mlip.testing import LAWS, check_all
    check_all(model, atoms)          # raises LawError naming the law, the error and the tolerance
"""

from mlip.testing.kit import LAWS, LawError, check_all, evaluate, graph_of
from mlip.testing.tolerances import TOLERANCES, grid_tolerance, tolerance

__all__ = ["LAWS", "TOLERANCES", "LawError", "check_all", "evaluate", "graph_of", "grid_tolerance", "tolerance"]
