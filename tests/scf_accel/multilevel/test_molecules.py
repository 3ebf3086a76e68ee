"""Molecules and Hamiltonians out of the ordinary: the accelerated result is that of stock PySCF."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import accelerate, agree, coarse_grid
from pyscf import dft, gto, qmmm, scf, solvent
from small_molecules import molecule


@pytest.mark.parametrize("method", [dft.RKS, scf.UHF])
def test_effective_core_potential(method):
    mol = gto.M(atom="H 0 0 0; I 0 0.1 1.61", basis="def2-svp", ecp="def2-svp", verbose=0)
    agree(coarse_grid(method(mol)))


@pytest.mark.parametrize("method", [dft.RKS, dft.ROKS])
def test_spin_free_x2c(method):
    mf = method(molecule("H 0 0 0; Cl 0 0.1 1.28", "sto-3g"), xc="pbe")
    agree(coarse_grid(mf).sfx2c1e())


def test_x2c_and_density_fitting():
    agree(coarse_grid(dft.RKS(molecule(), xc="pbe0")).density_fit().sfx2c1e())


def test_point_charges():
    mf = coarse_grid(dft.RKS(molecule(), xc="b3lyp"))
    agree(qmmm.mm_charge(mf, np.array([[2.5, 0.0, 0.5], [-1.0, 2.5, 1.0]]), np.array([0.5, -0.7])))


@pytest.mark.parametrize(("model", "method"), [("pcm", dft.RKS), ("cpcm", dft.UKS), ("ddcosmo", dft.UKS), ("smd", dft.RKS)])
def test_solvent(model, method):
    mf = coarse_grid(method(molecule(basis="sto-3g"), xc="pbe"))
    if model == "smd":
        mf = solvent.SMD(mf)
    elif model == "ddcosmo":
        mf = solvent.ddCOSMO(mf)
    else:
        mf = solvent.PCM(mf)
        mf.with_solvent.method = "IEF-PCM" if model == "pcm" else "C-PCM"
    mf.with_solvent.lebedev_order = 7
    agree(mf)


def test_solvent_of_hartree_fock_with_density_fitting():
    mf = solvent.PCM(scf.RHF(molecule()).density_fit())
    mf.with_solvent.lebedev_order = 7
    agree(mf)


@pytest.mark.parametrize(("method", "kind"), [(dft.RKS, "fermi"), (dft.UKS, "gauss"), (scf.RHF, "fermi")])
def test_smearing(method, kind):
    mf = coarse_grid(method(molecule(basis="sto-3g"), **({"xc": "pbe"} if method is not scf.RHF else {})))
    mf = scf.addons.smearing_(mf, sigma=0.1, method=kind)
    ours = agree(mf)
    assert ours.e_free < ours.e_tot


def test_smearing_of_a_stretched_bond():
    mf = coarse_grid(dft.RKS(molecule("N 0 0 0; N 0 0 2.0", "sto-3g"), xc="pbe"))
    agree(scf.addons.smearing_(mf, sigma=0.02, method="fermi"))


def test_fractional_occupations():
    mol = gto.M(atom="B 0 0 0", basis="6-31g", spin=1, verbose=0)
    mf = scf.addons.frac_occ_(scf.UHF(mol))
    agree(mf)


@pytest.mark.parametrize("method", [scf.RHF, dft.UKS])
def test_point_group_symmetry(method):
    mol = gto.M(atom="O 0 0 0.12; H 0 0.76 -0.47; H 0 -0.76 -0.47", basis="6-31g", symmetry=True, verbose=0)
    ours = agree(coarse_grid(method(mol)))
    occupied = ours.get_irrep_nelec()
    assert occupied == coarse_grid(method(mol)).run().get_irrep_nelec()


@pytest.mark.parametrize("method", [scf.ROHF, dft.UKS])
def test_point_group_symmetry_of_a_triplet(method):
    mol = gto.M(atom="C 0 0 0; H 0 0.99 0.42; H 0 -0.99 0.42", basis="sto-3g", spin=2, symmetry=True, verbose=0)
    agree(coarse_grid(method(mol)))


def test_prescribed_irreps():
    mol = gto.M(atom="C 0 0 0; H 0 0.99 0.42; H 0 -0.99 0.42", basis="sto-3g", spin=2, symmetry=True, verbose=0)
    mf = coarse_grid(dft.UKS(mol, xc="pbe"))
    mf.irrep_nelec = {"A1": (3, 2), "B1": (1, 0), "B2": (1, 1)}
    agree(mf)


@pytest.mark.parametrize(("method", "xc"), [(dft.RKS, "tpss"), (dft.UKS, "pbe0")])
def test_cartesian_functions(method, xc):
    agree(coarse_grid(method(molecule(basis="6-31g*", cart=True), xc=xc)))


@pytest.mark.parametrize("charge", [-1, 1])
def test_ions(charge):
    agree(coarse_grid(dft.UKS(molecule("hydroxyl", "6-31+g", charge=charge, spin=0 if charge < 0 else 2), xc="pbe0")))


@pytest.mark.parametrize("method", [dft.RKS, scf.RHF])
def test_ghost_atoms(method):
    mol = molecule("O 0 0 0.12; H 0 0.76 -0.47; H 0.02 -0.75 -0.48; ghost-O 0 0 3.0; ghost:H 0 0.7 3.5")
    agree(coarse_grid(method(mol)))


@pytest.mark.parametrize("method", [dft.UKS, dft.ROKS])
def test_hydrogen_atom_with_an_empty_spin(method):
    mf = coarse_grid(method(molecule("H 0 0 0", "def2-svp", spin=1)), level=2)
    agree(mf)


@pytest.mark.parametrize("method", [scf.RHF, scf.UHF, scf.ROHF])
def test_hartree_fock_of_one_electron(method):
    """PySCF diagonalises the core Hamiltonian once; so do we."""
    mf = method(molecule("H 0 0 0", "def2-svp", spin=1))
    stock, ours = mf.copy().run(), accelerate(mf).run()
    assert ours.converged
    np.testing.assert_allclose(ours.mo_energy, stock.mo_energy, atol=1e-10)


@pytest.mark.parametrize("method", [scf.RHF, dft.RKS, dft.UKS])
@pytest.mark.parametrize("atoms", ["He 0 0 0", "H 0 0 0; H 0 0.1 0.74"])
def test_two_electrons(method, atoms):
    agree(coarse_grid(method(molecule(atoms, "def2-svp"))))


def test_as_many_electrons_as_orbitals():
    """Nothing to optimise: the gradient has no elements."""
    agree(scf.RHF(molecule("He 0 0 0", "sto-3g")))
    agree(coarse_grid(dft.UKS(molecule("H 0 0 0", "sto-3g", spin=1))))


def test_triplet_hydrogen_fills_one_spin():
    agree(coarse_grid(dft.UKS(molecule("H 0 0 0; H 0 0 0.9", "sto-3g", spin=2), xc="pbe")))


@pytest.mark.parametrize("method", [scf.RHF, dft.RKS, dft.UKS])
def test_linearly_dependent_basis(method):
    mol = molecule("H 0 0 0; H 0 0 0.74; ghost-H 0 0 0.05", "aug-cc-pvdz")
    ours = agree(coarse_grid(method(mol)))
    assert ours.mo_coeff.shape[-1] < mol.nao


@pytest.mark.parametrize("method", [scf.ROHF, dft.ROKS])
def test_restricted_open_shell_with_zero_spin(method):
    agree(coarse_grid(method(molecule())))


@pytest.mark.parametrize("method", [dft.UKS, dft.ROKS])
def test_radical_with_one_unpaired_electron(method):
    agree(coarse_grid(method(molecule("water", "sto-3g", charge=1, spin=1), xc="pbe0")))


def test_finite_electric_field():
    mol = molecule()
    mf = coarse_grid(dft.RKS(mol, xc="pbe"))
    hcore = mf.get_hcore() + np.einsum("xij,x->ij", mol.intor("int1e_r"), [0.0, 0.0, 0.01])
    mf.get_hcore = lambda *args: hcore
    agree(mf)


def test_energy_terms_of_the_users_own():
    """An overridden method, as PySCF users do it, is respected."""

    class Penalised(dft.rks.RKS):
        def get_veff(self, mol=None, dm=None, *args, **kwargs):
            potential = super().get_veff(mol, dm, *args, **kwargs)
            self.calls = getattr(self, "calls", 0) + 1
            return potential

    mf = coarse_grid(Penalised(molecule(), xc="pbe"))
    ours = agree(mf)
    assert ours.calls == ours.cycles + 1  # one more by the check of the gradient
