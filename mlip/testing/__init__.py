"""The shared model test kit: laws that every model of this package has to obey, for our tests and for yours.

    from mlip.testing import check_all
    check_all(model, atoms)          # raises LawError naming the law, the error and the tolerance

``count_work`` counts the matrix products of a call.

``LAWS`` are those of potentials, ``DENSITY_LAWS`` those of predicted densities; a model obeys the laws of the heads it has.
"""

from mlip.testing.check import LawError, check_all, laws_of
from mlip.testing.density import DENSITY_LAWS, evaluate_density, rotate_coefficients
from mlip.testing.kit import LAWS, evaluate, graph_of
from mlip.testing.tolerances import TOLERANCES, grid_tolerance, tolerance
from mlip.testing.work import Work, count_work

__all__ = [
    "DENSITY_LAWS",
    "LAWS",
    "TOLERANCES",
    "LawError",
    "Work",
    "check_all",
    "count_work",
    "evaluate",
    "evaluate_density",
    "graph_of",
    "grid_tolerance",
    "laws_of",
    "rotate_coefficients",
    "tolerance",
]
