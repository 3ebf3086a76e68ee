"""Laws of density fitting: what the space holds is reproduced, electrons are counted, the residual is orthogonal."""

from __future__ import annotations

import numpy as np
import pytest

from scf_accel import fitting
from scf_accel.auxbasis import load_density_basis, rotate_coefficients
from scf_accel.densityerrors import (
    absolute_error,
    coulomb_self_energy_of_error,
    density_errors,
    density_on_points,
    dipole_error,
)
from scf_accel.fitting import (
    auxiliary_charges,
    auxiliary_dipoles,
    electron_count,
    fit_density,
    make_auxmol,
    metric_projections,
    solve_metric,
    three_index_blocks,
)

METRICS = {"overlap": ("int1e_ovlp", "int3c1e"), "coulomb": ("int2c2e", "int3c2e")}
WATER = "O 0 0.1 0; H 0 0.76 0.6; H 0.2 -0.75 0.55"


@pytest.fixture(scope="module")
def hydrogen_sulfide():
    from pyscf import gto, scf

    mol = gto.M(atom="S 0 0 0.1; H 0.1 0.97 0.93; H 0 -0.97 0.93", basis="def2-svp", verbose=0)
    mf = scf.RHF(mol).density_fit(auxbasis="def2-universal-jfit").run()
    return mol, make_auxmol(mol), mf.make_rdm1()


@pytest.fixture(scope="module")
def water():
    from pyscf import gto, scf

    mol = gto.M(atom=WATER, basis="def2-svp", verbose=0)
    return mol, make_auxmol(mol), scf.RHF(mol).run().make_rdm1()


@pytest.fixture(scope="module")
def grids(hydrogen_sulfide):
    from pyscf import dft

    grids = dft.gen_grid.Grids(hydrogen_sulfide[0])
    grids.level = 4
    return grids.build()


# ---------------------------------------------------------------------------------------------- auxiliary functions


def test_charges_and_dipoles_of_auxiliary_functions_equal_quadrature(hydrogen_sulfide, grids):
    _, auxmol, _ = hydrogen_sulfide
    values = grids.weights[:, None] * auxmol.eval_gto("GTOval_sph", grids.coords)
    np.testing.assert_allclose(auxiliary_charges(auxmol), values.sum(axis=0), atol=2e-4)
    np.testing.assert_allclose(auxiliary_dipoles(auxmol), grids.coords.T @ values, atol=1e-3)
    assert np.count_nonzero(auxiliary_charges(auxmol)) > 0


def test_charges_are_those_of_the_density_basis(water):
    _, auxmol, _ = water
    basis = load_density_basis("def2-universal-jfit", [1, 8])
    np.testing.assert_allclose(auxiliary_charges(auxmol), np.concatenate([basis.charges(z) for z in (8, 1, 1)]), rtol=1e-13)


# ------------------------------------------------------------------------------------------------------- the fit


def test_electron_count(hydrogen_sulfide):
    mol, auxmol, dm = hydrogen_sulfide
    assert electron_count(auxmol, fit_density(mol, auxmol, dm)) == pytest.approx(mol.nelectron, rel=1e-3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("auxbasis", ["def2-universal-jfit", "etb:def2-svp:1.5"])
def test_constraint_holds(water, metric, auxbasis):
    mol, _, dm = water
    auxmol = make_auxmol(mol, auxbasis)
    c = fit_density(mol, auxmol, dm, metric, conserve_electrons=True)
    assert electron_count(auxmol, c) == pytest.approx(mol.nelectron, abs=1e-10)
    assert np.abs(c - fit_density(mol, auxmol, dm, metric)).max() > 1e-12  # it had something to do


@pytest.mark.parametrize("metric", METRICS)
def test_residual_is_orthogonal(water, metric):
    """To every auxiliary function; with the constraint, to every one that carries no charge, and along q to the others."""
    from pyscf import df

    mol, auxmol, dm = water
    two, three = METRICS[metric]
    matrix = auxmol.intor(two)
    rhs = np.einsum("mnP,mn->P", df.incore.aux_e2(mol, auxmol, intor=three, aosym="s1"), dm)
    np.testing.assert_allclose(matrix @ fit_density(mol, auxmol, dm, metric), rhs, atol=1e-9)
    residual = matrix @ fit_density(mol, auxmol, dm, metric, conserve_electrons=True) - rhs
    charges = auxiliary_charges(auxmol)
    multiplier = (residual @ charges) / (charges @ charges)
    np.testing.assert_allclose(residual, multiplier * charges, atol=1e-9)
    assert abs(multiplier) > 1e-7


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("conserve", [False, True])
def test_density_in_the_auxiliary_space_is_reproduced(metric, conserve):
    """Products of two s Gaussians on one centre are one Gaussian: exponents a + b make the fit exact."""
    from itertools import combinations_with_replacement

    from pyscf import gto

    exponents = (3.0, 0.9, 0.4)
    mol = gto.M(atom="He 0 0.2 0", basis={"He": [[0, [a, 1.0]] for a in exponents]}, verbose=0)
    sums = sorted({a + b for a, b in combinations_with_replacement(exponents, 2)}, reverse=True)
    auxmol = gto.M(atom="He 0 0.2 0", basis={"He": [[0, [a, 1.0]] for a in sums]}, verbose=0)
    dm = np.diag([1.0, 0.5, 0.5])
    dm[0, 2] = dm[2, 0] = 0.3
    c = fit_density(mol, auxmol, dm, metric, conserve_electrons=conserve)
    points = np.random.default_rng(0).normal(size=(50, 3))
    orbitals = mol.eval_gto("GTOval_sph", points)
    np.testing.assert_allclose(density_on_points(auxmol, c, points), np.einsum("gm,mn,gn->g", orbitals, dm, orbitals), atol=1e-9)
    assert abs(coulomb_self_energy_of_error(mol, auxmol, c, dm)) < 1e-10


def test_projecting_fitted_functions_returns_their_coefficients(water):
    """M c = b for b = M c: what is in the space stays as it is, up to the metric's condition."""
    _, auxmol, _ = water
    c = np.random.default_rng(0).normal(size=auxmol.nao)
    for two, _ in METRICS.values():
        matrix = auxmol.intor(two)
        np.testing.assert_allclose(solve_metric(matrix, matrix @ c), c, atol=1e-8)
        np.testing.assert_allclose(solve_metric(matrix, matrix @ np.stack([c, 2 * c], axis=1))[:, 1], 2 * c, atol=1e-8)


def test_coulomb_fit_has_the_least_self_energy_and_repels_less(hydrogen_sulfide):
    from pyscf import scf

    mol, auxmol, dm = hydrogen_sulfide
    c = fit_density(mol, auxmol, dm)
    best = coulomb_self_energy_of_error(mol, auxmol, c, dm)
    rng = np.random.default_rng(0)
    for _ in range(5):
        step = 1e-3 * rng.normal(size=len(c))
        worse = coulomb_self_energy_of_error(mol, auxmol, c + step, dm)
        expected = best + coulomb_self_energy_of_error(mol, auxmol, c + step, c)  # a minimum: no linear term
        assert worse > best and worse == pytest.approx(expected, abs=1e-10)
    assert coulomb_self_energy_of_error(mol, auxmol, fit_density(mol, auxmol, dm, "overlap"), dm) > best
    assert coulomb_self_energy_of_error(mol, auxmol, fit_density(mol, auxmol, dm, conserve_electrons=True), dm) > best
    exact = np.einsum("mn,mn", scf.hf.get_jk(mol, dm)[0], dm)
    fitted = c @ auxmol.intor("int2c2e") @ c
    assert 0 < exact - fitted < 1e-3 * exact
    assert 2 * best == pytest.approx(exact - fitted, abs=1e-9)  # (rho|rho) - (rho~|rho~) = (rho - rho~|rho - rho~)


def test_overlap_fit_has_the_least_square_error(hydrogen_sulfide, grids):
    mol, auxmol, dm = hydrogen_sulfide
    orbitals = mol.eval_gto("GTOval_sph", grids.coords)
    exact = np.einsum("gm,mn,gn->g", orbitals, dm, orbitals)

    def square(c):
        return grids.weights @ (density_on_points(auxmol, c, grids.coords) - exact) ** 2

    c = fit_density(mol, auxmol, dm, "overlap")
    assert square(c) < square(fit_density(mol, auxmol, dm, "coulomb"))
    rng = np.random.default_rng(1)
    assert all(square(c) < square(c + 0.01 * rng.normal(size=len(c))) for _ in range(3))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("conserve", [False, True])
def test_fit_is_linear_and_spins_are_summed(water, metric, conserve):
    mol, auxmol, dm = water
    one = fit_density(mol, auxmol, dm, metric, conserve_electrons=conserve)
    both = fit_density(mol, auxmol, np.stack([0.75 * dm, 0.25 * dm]), metric, conserve_electrons=conserve)
    np.testing.assert_allclose(both, one, atol=1e-9)
    np.testing.assert_allclose(fit_density(mol, auxmol, 3 * dm, metric, conserve_electrons=conserve), 3 * one, atol=1e-8)
    skew = np.triu(np.random.default_rng(0).normal(size=dm.shape), 1)
    np.testing.assert_allclose(fit_density(mol, auxmol, dm + skew - skew.T, metric, conserve_electrons=conserve), one, atol=1e-9)


def test_unrestricted_atom_is_the_sum_of_its_spins():
    from pyscf import gto, scf

    mol = gto.M(atom="N 0 0 0", basis="sto-3g", spin=3, verbose=0)
    dm = np.asarray(scf.UHF(mol).run().make_rdm1())
    auxmol = make_auxmol(mol)
    alpha, beta = (fit_density(mol, auxmol, part) for part in dm)
    np.testing.assert_allclose(fit_density(mol, auxmol, dm), alpha + beta, atol=1e-10)
    assert electron_count(auxmol, alpha - beta) == pytest.approx(3, abs=2e-2)


# -------------------------------------------------------------------------------------------- rotation, permutation


@pytest.mark.parametrize("metric", METRICS)
def test_fit_of_a_real_density_rotates_with_the_molecule(water, metric):
    """The density matrix turns with the orbitals' own matrices, the coefficients with those of the auxiliary basis."""
    mol, auxmol, dm = water
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    numbers = [8, 1, 1]
    orbital_basis = load_density_basis("def2-svp", numbers)
    half = rotate_coefficients(orbital_basis, numbers, dm, rotation)
    turned_dm = rotate_coefficients(orbital_basis, numbers, half.T, rotation).T
    turned = mol.set_geom_(mol.atom_coords() @ rotation.T, unit="Bohr", inplace=False)
    after = fit_density(turned, make_auxmol(turned), turned_dm, metric)
    before = fit_density(mol, auxmol, dm, metric)
    basis = load_density_basis("def2-universal-jfit", numbers)
    np.testing.assert_allclose(after, rotate_coefficients(basis, numbers, before, rotation), atol=1e-10)
    assert np.abs(after - before).max() > 0.01


def test_converged_scf_of_the_turned_molecule_has_the_turned_coefficients():
    """Nothing handed over but the geometry: integrals, SCF and fit of both molecules are their own; l up to 4."""
    from pyscf import gto, scf

    basis, numbers = load_density_basis("def2-universal-jkfit", [1, 8]), [8, 1]
    assert basis.l_max == 4
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
    coefficients = []
    for turn in (np.eye(3), rotation):
        positions = np.array([[0.1, 0.0, 0.2], [0.9, 0.4, -0.1]]) @ turn.T
        atoms = list(zip("OH", positions.tolist(), strict=True))
        mol = gto.M(atom=atoms, basis="def2-svp", charge=-1, verbose=0)
        mf = scf.RHF(mol)
        mf.conv_tol, mf.conv_tol_grad = 1e-14, 1e-12
        mf.kernel()
        coefficients.append(fit_density(mol, make_auxmol(mol, basis), mf.make_rdm1()))
    expected = rotate_coefficients(basis, numbers, coefficients[0], rotation)
    np.testing.assert_allclose(coefficients[1], expected, atol=1e-10)


def test_atoms_may_be_permuted(water):
    from pyscf import gto

    mol, auxmol, dm = water
    order = [2, 0, 1]
    other = gto.M(atom=[mol._atom[i] for i in order], unit="Bohr", basis="def2-svp", verbose=0)
    orbitals = np.concatenate([np.arange(*mol.aoslice_by_atom()[i, 2:]) for i in order])
    functions = np.concatenate([np.arange(*auxmol.aoslice_by_atom()[i, 2:]) for i in order])
    c = fit_density(other, make_auxmol(other), dm[np.ix_(orbitals, orbitals)])
    np.testing.assert_allclose(c, fit_density(mol, auxmol, dm)[functions], atol=1e-10)


# ------------------------------------------------------------------------------------- memory, dependence, Cartesian


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_are_small_and_give_the_same(water, metric, monkeypatch):
    mol, auxmol, dm = water
    whole = metric_projections(mol, auxmol, dm, metric)
    assert len(list(three_index_blocks(mol, auxmol, metric))) == 1
    n_pair = mol.nao * (mol.nao + 1) // 2
    monkeypatch.setattr(fitting, "_LEAST_MB", 2 * 8 * 8 * n_pair / 1e6)  # two blocks of eight functions
    blocks = list(three_index_blocks(mol, auxmol, metric, max_memory=0))
    assert len(blocks) > 5 and max(block.shape[1] for _, block in blocks) <= 9  # one g shell holds nine
    assert [part.start for part, _ in blocks[1:]] == [part.stop for part, _ in blocks[:-1]]
    np.testing.assert_allclose(metric_projections(mol, auxmol, dm, metric, max_memory=0), whole, atol=1e-12)
    full = fit_density(mol, auxmol, dm, metric)
    np.testing.assert_allclose(fit_density(mol, auxmol, dm, metric, max_memory=0), full, atol=1e-9)


def test_dependent_functions_are_no_trouble(water):
    """The same functions twice: the density is as with one set, and no coefficient blows up."""
    from pyscf import gto

    mol, auxmol, dm = water
    single = fit_density(mol, auxmol, dm)
    twice = gto.mole.conc_mol(auxmol, auxmol)
    double = fit_density(mol, twice, dm)
    points = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(density_on_points(twice, double, points), density_on_points(auxmol, single, points), atol=1e-7)
    assert np.abs(double).max() < 2 * np.abs(single).max()
    held = fit_density(mol, twice, dm, conserve_electrons=True)
    assert electron_count(twice, held) == pytest.approx(mol.nelectron, abs=1e-8)


def test_tighter_even_tempered_sets_fit_better_down_to_dependence(water):
    mol, _, dm = water
    errors = []
    for beta in (3.0, 2.0, 1.3):
        auxmol = make_auxmol(mol, f"etb:def2-svp:{beta}")
        c = fit_density(mol, auxmol, dm)
        assert np.abs(c).max() < 1e4
        errors.append(coulomb_self_energy_of_error(mol, auxmol, c, dm))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > -1e-8


def test_cartesian_orbitals():
    from pyscf import df, gto, scf

    mol = gto.M(atom=WATER, basis="def2-svp", cart=True, verbose=0)
    dm = scf.RHF(mol).run().make_rdm1()
    auxmol = make_auxmol(mol)
    c = fit_density(mol, auxmol, dm, conserve_electrons=True)
    errors = density_errors(mol, auxmol, c, dm)
    assert abs(errors.electrons) < 1e-9 and errors.absolute < 0.03 and 0 < errors.coulomb < 1e-3
    cartesian = auxmol.copy(deep=False)
    cartesian.cart = True
    three = df.incore.aux_e2(mol, cartesian, intor="int3c2e_cart", aosym="s1")
    expected = np.einsum("mnP,mn->P", three, dm) @ cartesian.cart2sph_coeff()
    np.testing.assert_allclose(metric_projections(mol, auxmol, dm), expected, atol=1e-10)
    with pytest.raises(ValueError, match="Cartesian functions"):
        fit_density(mol, cartesian, dm)


def test_core_potential_fits_the_valence_electrons():
    from pyscf import gto, scf

    mol = gto.M(atom="I 0 0 0; H 0 0 1.61", basis="def2-svp", ecp="def2-svp", verbose=0)
    dm = scf.RHF(mol).run().make_rdm1()
    auxmol = make_auxmol(mol)
    assert mol.nelectron < 54
    assert electron_count(auxmol, fit_density(mol, auxmol, dm, conserve_electrons=True)) == pytest.approx(mol.nelectron, abs=1e-9)


# --------------------------------------------------------------------------------------------------------- measures


def test_measures_are_zero_between_equals_and_symmetric(water):
    mol, auxmol, dm = water
    one, two = fit_density(mol, auxmol, dm), fit_density(mol, auxmol, dm, "overlap")
    none = density_errors(mol, auxmol, one, one)
    assert none.absolute == none.coulomb == none.electrons == 0 and not none.dipole.any()
    there, back = density_errors(mol, auxmol, one, two), density_errors(mol, auxmol, two, one)
    assert there.coulomb == pytest.approx(back.coulomb, rel=1e-10) and there.coulomb > 0
    assert there.electrons == pytest.approx(-back.electrons, abs=1e-11)
    np.testing.assert_allclose(there.dipole, -back.dipole, atol=1e-11)


def test_measures_scale(water):
    """All of a density missing: error 100 %, minus all electrons, minus its self-repulsion, minus its moment."""
    from pyscf import scf

    mol, auxmol, dm = water
    nothing = density_errors(mol, auxmol, np.zeros(auxmol.nao), dm)
    assert nothing.absolute == pytest.approx(1.0, abs=1e-4)
    assert nothing.electrons == pytest.approx(-mol.nelectron, abs=1e-9)
    hartree = 0.5 * np.vdot(scf.hf.get_jk(mol, dm)[0], dm)
    assert nothing.coulomb == pytest.approx(hartree, rel=1e-10)
    centre = mol.atom_charges() @ mol.atom_coords() / mol.atom_charges().sum()
    moment = scf.hf.dip_moment(mol, dm, unit="AU", verbose=0)  # nuclear minus electronic; no charge, so no origin
    np.testing.assert_allclose(nothing.dipole, moment, atol=1e-9)
    assert np.abs(centre).max() > 0.1


def test_dipole_error_is_the_dipole_moments_difference_and_has_no_origin(water):
    from pyscf import scf

    mol, auxmol, dm = water
    c = fit_density(mol, auxmol, dm, conserve_electrons=True)
    nuclear = mol.atom_charges() @ mol.atom_coords()
    fitted = nuclear - auxiliary_dipoles(auxmol) @ c
    difference = scf.hf.dip_moment(mol, dm, unit="AU", verbose=0) - fitted
    np.testing.assert_allclose(dipole_error(mol, auxmol, c, dm), difference, atol=1e-9)
    shift = np.array([5.0, -3.0, 9.0])
    moved = mol.set_geom_(mol.atom_coords() + shift, unit="Bohr", inplace=False)
    free = fit_density(mol, auxmol, dm)
    here, there = dipole_error(mol, auxmol, free, dm), dipole_error(moved, make_auxmol(moved), free, dm)
    np.testing.assert_allclose(there, here, atol=1e-9)


def test_absolute_error_against_a_matrix_or_coefficients_of_it_agree(water):
    """A perturbation far larger than the fit's own error looks alike against both references."""
    mol, auxmol, dm = water
    c = fit_density(mol, auxmol, dm)
    wrong = 1.5 * c
    assert absolute_error(mol, auxmol, wrong, c) == pytest.approx(0.5, rel=1e-2)
    assert absolute_error(mol, auxmol, wrong, dm) == pytest.approx(0.5, rel=2e-2)


# ----------------------------------------------------------------------------------------------------------- errors


def test_bad_arguments(water):
    mol, auxmol, dm = water
    with pytest.raises(ValueError, match="allowed is 'overlap' or 'coulomb'"):
        fit_density(mol, auxmol, dm, metric="overlapp")
    with pytest.raises(ValueError, match=r"\[n_ao, n_ao\] or \[2, n_ao, n_ao\] expected"):
        fit_density(mol, auxmol, dm[0])
    from pyscf import gto

    no_charge = gto.M(atom=WATER, basis={"O": [[1, [1.0, 1.0]]], "H": [[1, [1.0, 1.0]]]}, verbose=0)
    with pytest.raises(ValueError, match="no auxiliary function carries charge"):
        fit_density(mol, no_charge, dm, conserve_electrons=True)
