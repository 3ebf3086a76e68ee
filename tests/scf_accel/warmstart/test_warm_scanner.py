"""Scanners and optimisers: the energies are those of fresh stock runs, whatever starts a geometry."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from predictors import Bad, Oracle, Polar, coarse, tight
from pyscf import df, dft, gto, scf
from pyscf.geomopt.geometric_solver import optimize
from small_molecules import molecule

import scf_accel
from scf_accel.warmstart.scanner import Last, projected

NEAR = [f"O 0 0 0.12; H 0 {0.76 + 0.02 * step} -0.47; H 0.02 -0.75 {-0.48 - 0.01 * step}" for step in range(4)]
MODES = ["last", "predicted", "change", "fock"]
METHODS = {
    "rks": lambda mol: coarse(dft.RKS(mol)),
    "fitted": lambda mol: coarse(dft.RKS(mol)).density_fit(),
    "uhf": scf.UHF,
    "newton": lambda mol: coarse(dft.RKS(mol)).newton(),
    "smeared": lambda mol: coarse(dft.RKS(mol)).smearing(sigma=0.01, method="fermi"),
}


def mol_at(atoms, **keywords):
    return molecule(atoms, "sto-3g", **keywords)


@cache
def stock_energy(method, atoms, spin=0):
    """Of stock PySCF, tightly converged: the same for every mode."""
    return tight(method(mol_at(atoms, spin=spin))).e_tot


DENSITIES = {}


def knowing(oracle, method):
    """``oracle`` with the densities that earlier ones have found for the same method at the same geometries."""
    oracle._known = DENSITIES.setdefault(method, {})
    return oracle


def walk(scanner, method, path=NEAR, **keywords):
    """Energies along a path agree with fresh stock runs; returns the reports."""
    reports = []
    for atoms in path:
        energy = scanner(mol_at(atoms, **keywords))
        assert scanner.converged and abs(energy - stock_energy(method, atoms, **keywords)) < 1e-8
        reports.append(scanner.warm_start_report)
    return reports


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", METHODS)
def test_energies_along_a_path(name, mode):
    method = METHODS[name]
    oracle = knowing(Oracle(method), method)
    scanner = scf_accel.warm_start(method(mol_at(NEAR[0])), oracle, scanner=mode).as_scanner()
    reports = walk(scanner, method)
    assert reports[0].start == "predicted"
    assert all(report.start in (mode, "last") and report.fallback is None for report in reports[1:])
    if name in ("rks", "fitted"):
        assert all(report.start == mode for report in reports[1:])


@pytest.mark.parametrize("method", [scf.UHF, scf.ROHF])
@pytest.mark.parametrize("mode", ["change", "fock"])
def test_open_shells_along_a_path(method, mode):
    path = [f"C 0 0 0; H 0 {0.99 + 0.02 * step} 0.42; H 0.05 -0.99 0.42" for step in range(3)]
    scanner = scf_accel.warm_start(method(mol_at(path[0], spin=2)), Oracle(method), scanner=mode).as_scanner()
    assert all(report.start in (mode, "last") for report in walk(scanner, method, path, spin=2)[1:])


@pytest.mark.parametrize("order", ["inside", "outside"])
def test_multilevel_solver_along_a_path(order):
    method = METHODS["rks"]
    mf, predictor = method(mol_at(NEAR[0])), Oracle(method)
    if order == "inside":
        ours = scf_accel.warm_start(scf_accel.accelerate(mf, always=True), predictor)
    else:
        ours = scf_accel.accelerate(scf_accel.warm_start(mf, predictor), always=True)
    scanner = ours.as_scanner()
    assert [report.start for report in walk(scanner, method)] == ["predicted", "fock", "fock", "fock"]
    assert scanner.multilevel_report.fallback is None and scanner.multilevel_report.fine_builds <= 3


def test_fewer_cycles_than_from_the_last_density():
    cycles = {}
    for mode in ("last", "fock"):
        method = METHODS["rks"]
        scanner = scf_accel.warm_start(method(molecule(NEAR[0])), Oracle(method), scanner=mode).as_scanner()
        cycles[mode] = 0
        for atoms in NEAR:
            scanner(molecule(atoms))
            cycles[mode] += scanner.cycles
    assert cycles["fock"] < cycles["last"]


@pytest.mark.parametrize("mode", [None, *MODES])
def test_integrals_of_density_fitting_are_made_once_a_geometry(mode, monkeypatch):
    built, build = [], df.DF.build
    monkeypatch.setattr(df.DF, "build", lambda self: built.append(self.mol) or build(self))
    mf = scf.RHF(mol_at(NEAR[0])).density_fit()
    scanner = (mf if mode is None else scf_accel.warm_start(mf, Oracle(scf.RHF), scanner=mode)).as_scanner()
    for atoms in NEAR:
        mol = mol_at(atoms)
        scanner(mol)
        assert built == [mol]
        built.clear()
    if mode is not None:
        assert scanner.warm_start_report.start in (mode, "last")
    scanner.reset(mol)
    assert scanner.with_df._cderi is None, "a reset of the user's own is one"


def test_the_error_of_a_model_that_is_the_same_everywhere_cancels():
    method = METHODS["rks"]
    predictor = Polar(method, lambda *_: 0.01)
    scanner = scf_accel.warm_start(method(mol_at(NEAR[0])), predictor, check=False).as_scanner()
    scanner(mol_at(NEAR[0]))
    first = scanner.cycles
    scanner(mol_at(NEAR[0]))
    assert scanner.warm_start_report.start == "fock"
    assert scanner.cycles <= 2 < first, "at the same geometry the start is the converged density itself"


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize(
    "how",
    [lambda c: c * 1.05, RuntimeError("broken"), lambda c: c * np.nan, lambda c: c[:-1]],
    ids=["count", "exception", "nan", "short"],
)
def test_bad_predictions_end_in_the_last_density(mode, how):
    method = METHODS["rks"]
    scanner = scf_accel.warm_start(method(mol_at(NEAR[0])), knowing(Bad(method, how), method), scanner=mode).as_scanner()
    reports = walk(scanner, method)
    assert all(report.fallback and not report.used for report in reports)
    assert [report.start for report in reports] == ["minao", "last", "last", "last"]


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_restless_model_is_not_better_than_the_last_density(mode):
    method = METHODS["rks"]
    predictor = Polar(method, lambda geometry, n: 0.03 * np.random.default_rng(geometry).normal(size=n))
    scanner = scf_accel.warm_start(method(mol_at(NEAR[0])), predictor, scanner=mode).as_scanner()
    reports = walk(scanner, method)[1:]
    assert all(report.start == "last" and report.fallback is None for report in reports)
    assert all(report.error > report.stock_error for report in reports)


def test_another_molecule_starts_afresh():
    method = METHODS["rks"]
    scanner = scf_accel.warm_start(method(mol_at(NEAR[0])), Oracle(method)).as_scanner()
    reports = walk(scanner, method, [NEAR[0], "formaldehyde", NEAR[1], NEAR[2]])
    assert [report.start for report in reports] == ["predicted", "predicted", "predicted", "fock"]


def test_scanner_of_a_finished_run_and_of_coordinates():
    method = METHODS["rks"]
    mf = scf_accel.warm_start(method(mol_at(NEAR[0])), Oracle(method)).run()
    scanner = mf.as_scanner()
    for step in (1, 2):
        energy = scanner(np.asarray(mol_at(NEAR[step]).atom_coords(unit="Angstrom")))
        assert abs(energy - tight(method(mol_at(NEAR[step]))).e_tot) < 1e-8
        assert scanner.warm_start_report.start == "fock"
    assert mf.mol.atom_coord(1)[1] == mol_at(NEAR[0]).atom_coord(1)[1], "the object itself has not moved"
    assert scanner.as_scanner() is scanner


def test_a_given_density_matrix_goes_before():
    method = METHODS["rks"]
    predictor = Oracle(method)
    scanner = scf_accel.warm_start(method(mol_at(NEAR[0])), predictor).as_scanner()
    scanner(mol_at(NEAR[0]))
    dm = scanner.make_rdm1()
    scanner(mol_at(NEAR[0]), dm0=dm)
    assert scanner.cycles <= 2 and scanner.warm_start_report.start == "given"


def test_molecule_moved_in_place():
    """geomeTRIC's engine moves one and the same molecule."""
    method, mol = METHODS["rks"], mol_at(NEAR[0])
    scanner = scf_accel.warm_start(method(mol.copy()), Oracle(method)).nuc_grad_method().as_scanner()
    for step in range(3):
        mol.set_geom_(mol_at(NEAR[step]).atom_coords(), unit="Bohr")
        energy, gradient = scanner(mol)
        stock = tight(method(mol_at(NEAR[step])))
        assert abs(energy - stock.e_tot) < 1e-8
        np.testing.assert_allclose(gradient, stock.nuc_grad_method().kernel(), atol=1e-4)
    assert scanner.base.warm_start_report.start == "fock"


def test_broken_symmetry_is_kept():
    """Stretched H2: a scanner that has found the broken-symmetry solution stays on it."""
    path = [f"H 0 0 0; H 0 0 {2.4 + 0.02 * step}" for step in range(3)]
    for mode in MODES:
        mf = scf.UHF(mol_at(path[0]))
        scanner = scf_accel.warm_start(mf, Oracle(lambda mol: scf.UHF(mol).set(init_guess_breaksym=0)), scanner=mode).as_scanner()
        dm = mf.get_init_guess()
        dm[0][1, 1] = dm[1][0, 0] = 0.0
        scanner(mol_at(path[0]), dm0=dm)
        for atoms in path[1:]:
            energy = scanner(mol_at(atoms))
            assert energy < scf.RHF(mol_at(atoms)).kernel() - 0.01, mode


def test_last_orbitals_are_orthonormal_again():
    mf = scf.UHF(molecule("methylene", spin=2)).run()
    moved = scf.UHF(molecule("C 0 0 0; H 0 1.2 0.42; H 0.05 -0.99 0.42", spin=2))
    dm = projected(moved, Last(mf.mol, mf.mo_energy, mf.mo_coeff, mf.mo_occ))
    for spin, electrons in zip(dm, mf.nelec, strict=True):
        product = spin @ moved.get_ovlp()
        assert np.trace(product) == pytest.approx(electrons)
        np.testing.assert_allclose(product @ product, product, atol=1e-10)


@pytest.mark.parametrize("solver", ["pyscf", "multilevel"])
def test_geometry_optimisation(solver):
    """geomeTRIC, by way of PySCF, ends at the same geometry."""
    mol = gto.M(atom="H 0 0 0; F 0 0 1.0", basis="sto-3g", verbose=0)
    mf, finished = scf_accel.warm_start(scf.RHF(mol), Oracle(scf.RHF)), []
    if solver == "multilevel":
        mf = scf_accel.accelerate(mf, always=True)
        mf.callback = lambda envs: finished.append(envs["step"].coarse_builds)  # only the multilevel solver has steps
    ours = optimize(mf)
    assert bool(finished) == (solver == "multilevel")
    np.testing.assert_allclose(ours.atom_coords(), optimize(scf.RHF(mol)).atom_coords(), atol=1e-3)
