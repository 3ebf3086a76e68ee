"""Laws of the density basis: normalised functions, metric matrices that move with the molecule, a lossless record."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from e3nn import o3

from mlip.data.density import DensityBasis, Shell, component_order, metric_matrix, real_harmonics, repulsion, to_irreps
from mlip.errors import DataError

NUMBERS = [8, 1, 1, 7]
POSITIONS = np.array([[0.0, 0.1, 0.0], [0.0, 0.76, 0.6], [0.2, -0.75, 0.55], [1.9, 0.3, -0.4]])
L_MAX = 4


@pytest.fixture(scope="module")
def basis():
    """Every l up to 4, contracted and not, in an order that is not the usual one of rising l."""
    heavy = (
        Shell(0, (40.0, 6.0, 1.5), (0.2, 0.5, -0.3)),
        Shell(2, (1.1,), (1.0,)),
        *(Shell(l, (2.0 + l, 0.7), (0.4, 0.8)) for l in range(L_MAX + 1)),
    )
    return DensityBasis("test", {1: (Shell(0, (1.3,), (2.0,)), Shell(1, (0.9,), (1.0,))), 7: heavy[1:], 8: heavy})


@pytest.fixture
def double():
    """e3nn's Wigner matrices are made in torch's default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def random_rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


def test_layout_counts_and_order(basis):
    assert basis.elements == (1, 7, 8) and basis.l_max == L_MAX
    assert basis.degrees(8) == (0, 2, 0, 1, 2, 3, 4)
    assert basis.num_functions(8) == 1 + 5 + 25
    np.testing.assert_array_equal(basis.offsets(NUMBERS), [0, 31, 35, 39, 69])
    assert basis.offsets([]).tolist() == [0]


def test_record_is_lossless_through_json(basis):
    assert DensityBasis.from_dict(json.loads(json.dumps(basis.to_dict()))) == basis


@pytest.mark.parametrize("damage", [{}, {"name": "x"}, {"name": "x", "shells": {"Qq": []}}, {"name": "x", "shells": {"H": [[0]]}}])
def test_damaged_record(damage):
    with pytest.raises(DataError, match="not a density basis"):
        DensityBasis.from_dict(damage)


@pytest.mark.parametrize("shell", [(-1, (1.0,), (1.0,)), (0, (1.0,), ()), (0, (-1.0,), (1.0,)), (0, (1.0,), (0.0,))])
def test_impossible_shell(shell):
    with pytest.raises(ValueError, match="a shell needs"):
        Shell(*shell)


def test_element_without_functions_is_named(basis):
    with pytest.raises(DataError, match="no functions for Cl; it covers H N O"):
        basis.offsets([1, 17])
    with pytest.raises(DataError, match="no functions for Cl"):
        metric_matrix(basis, [17], np.zeros((1, 3)), "overlap")
    assert basis.subset([8, 1, 8]).elements == (1, 8)


def test_common_scale_of_a_contraction_has_no_effect():
    """The functions are normalised, whatever the coefficients' scale; the sign of a contraction is kept."""
    one, other = Shell(1, (2.0, 0.5), (0.3, 0.6)), Shell(1, (2.0, 0.5), (0.9, 1.8))
    np.testing.assert_allclose(one.radial, other.radial, rtol=1e-14)
    assert Shell(0, (1.0,), (-1.0,)).charge == -Shell(0, (1.0,), (1.0,)).charge < 0


# ---------------------------------------------------------------------------------------------------- harmonics


@pytest.mark.parametrize("l", range(7))
def test_to_irreps_turns_our_harmonics_into_those_of_e3nn(l):
    points = np.random.default_rng(5).normal(size=(40, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    theirs = o3.spherical_harmonics(l, torch.from_numpy(points), normalize=False, normalization="component").numpy()
    ours = np.sqrt(4 * np.pi) * real_harmonics(l, points)
    np.testing.assert_allclose(ours @ to_irreps(l).T, theirs, atol=1e-12)
    np.testing.assert_allclose(to_irreps(l) @ to_irreps(l).T, np.eye(2 * l + 1), atol=1e-13)


def test_to_irreps_is_the_harmonics_of_the_network():
    from mlip.nn.irreps import block
    from mlip.nn.spherical import SphericalHarmonics

    points = np.random.default_rng(6).normal(size=(20, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    network = SphericalHarmonics(L_MAX).double()(torch.from_numpy(points)).numpy()
    for l in range(L_MAX + 1):
        expected = np.sqrt(4 * np.pi) * real_harmonics(l, points) @ to_irreps(l).T
        np.testing.assert_allclose(network[:, block(l)], expected, atol=1e-6)


def test_low_orders_are_the_identity_and_the_matrices_cannot_be_changed():
    np.testing.assert_array_equal(to_irreps(0), np.eye(1))
    np.testing.assert_allclose(to_irreps(1), np.eye(3), atol=1e-13)
    np.testing.assert_array_equal(component_order(1), [2, 0, 1])  # x is m = 1, y is m = -1, z is m = 0
    np.testing.assert_array_equal(component_order(3), np.arange(7))
    with pytest.raises(ValueError, match="read-only"):
        to_irreps(2)[0, 0] = 1.0
    with pytest.raises(ValueError, match="allowed are 0 and above"):
        to_irreps(-1)


# ---------------------------------------------------------------------------------------------- metric matrices


@pytest.mark.parametrize("metric", ["overlap", "coulomb"])
def test_metric_matrix_is_that_of_pyscf(basis, metric):
    from pyscf import gto

    atoms = list(zip(("O", "H", "H", "N"), POSITIONS.tolist(), strict=True))
    mol = gto.M(atom=atoms, unit="Angstrom", basis=basis.subset([1]).pyscf_basis() | _sorted(basis), spin=None, verbose=0)
    expected = mol.intor({"overlap": "int1e_ovlp", "coulomb": "int2c2e"}[metric])
    rising = DensityBasis("sorted", {z: tuple(sorted(s, key=lambda shell: shell.l)) for z, s in basis.shells.items()})
    np.testing.assert_allclose(metric_matrix(rising, NUMBERS, POSITIONS, metric), expected, atol=1e-11)


def _sorted(basis):
    return {symbol: sorted(entries, key=lambda entry: entry[0]) for symbol, entries in basis.pyscf_basis().items()}


@pytest.mark.parametrize("metric", ["overlap", "coulomb"])
def test_metric_is_symmetric_positive_and_has_the_stated_diagonal(basis, metric):
    matrix = metric_matrix(basis, NUMBERS, POSITIONS, metric)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix)[0] > 0
    diagonal = np.concatenate([basis.metric_diagonal(z, metric) for z in NUMBERS])
    np.testing.assert_allclose(np.diagonal(matrix), diagonal, rtol=1e-12)


def test_onsite_repulsion_is_the_block_of_one_atom(basis):
    for z in (7, 8):
        matrix = metric_matrix(basis, [z], np.zeros((1, 3)), "coulomb")
        degrees = np.array(basis.degrees(z))
        starts = np.cumsum([0, *(2 * degrees + 1)])[:-1]
        for l in range(L_MAX + 1):
            for component in range(2 * l + 1):
                rows = starts[degrees == l] + component
                np.testing.assert_allclose(basis.onsite_repulsion(z, l), matrix[np.ix_(rows, rows)], rtol=1e-11)
    assert basis.onsite_repulsion(1, 3).shape == (0, 0)
    with pytest.raises(ValueError, match="degree 0 and 1"):
        repulsion(*basis.of(1))


def test_charge_is_the_limit_of_the_coulomb_field(basis):
    """A compact unit charge at distance R sees q / R of each s function and nothing of the others' charge."""
    probe = Shell(0, (3.0,), (1.0,))
    far, bohr = 400.0, 0.52917721092
    both = DensityBasis("probe", {8: basis.of(8), 2: (probe,)})
    matrix = metric_matrix(both, [8, 2], np.array([[0, 0, 0], [0, 0, far * bohr]]), "coulomb")
    potential = matrix[:-1, -1] / probe.charge * far
    charges = basis.charges(8)
    scalar = np.repeat([l == 0 for l in basis.degrees(8)], [2 * l + 1 for l in basis.degrees(8)])
    np.testing.assert_allclose(potential[scalar], charges[scalar], rtol=1e-6)
    np.testing.assert_array_equal(charges[~scalar], 0.0)
    assert np.abs(potential[~scalar]).max() < 0.01 * np.abs(charges).max()  # dipoles and above fall off faster


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("metric", ["overlap", "coulomb"])
def test_metric_rotates_with_wigner_matrices_of_e3nn(basis, metric):
    """M(R x) = D M(x) D^T with D from e3nn between the two changes of order; R a rotation or a reflection."""
    for seed in (0, 1):
        rotation = random_rotation(seed)
        blocks = []
        for z in NUMBERS:
            for l in basis.degrees(z):
                wigner = o3.Irrep(l, (-1) ** l).D_from_matrix(torch.from_numpy(rotation)).numpy()
                blocks.append(to_irreps(l).T @ wigner @ to_irreps(l))
        turn = torch.block_diag(*map(torch.from_numpy, blocks)).numpy()
        before, after = (metric_matrix(basis, NUMBERS, x, metric) for x in (POSITIONS, POSITIONS @ rotation.T))
        np.testing.assert_allclose(after, turn @ before @ turn.T, atol=1e-10)


def test_metric_ignores_translation_and_follows_permutation(basis):
    order = [2, 3, 0, 1]
    offsets = basis.offsets(NUMBERS)
    rows = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in order])
    matrix = metric_matrix(basis, NUMBERS, POSITIONS, "coulomb")
    moved = metric_matrix(basis, [NUMBERS[i] for i in order], POSITIONS[order] + 7.0, "coulomb")
    np.testing.assert_allclose(moved, matrix[np.ix_(rows, rows)], atol=1e-10)


def test_bad_arguments(basis):
    with pytest.raises(ValueError, match="allowed is 'overlap' or 'coulomb'"):
        metric_matrix(basis, NUMBERS, POSITIONS, "exchange")
    with pytest.raises(ValueError, match="allowed is 'overlap' or 'coulomb'"):
        basis.metric_diagonal(1, "l2")
    with pytest.raises(ValueError, match=r"shape \(3, 3\); \(4, 3\) expected"):
        metric_matrix(basis, NUMBERS, POSITIONS[:3], "overlap")


def test_module_needs_no_pyscf():
    code = "import mlip.data.density, sys; sys.exit('pyscf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
