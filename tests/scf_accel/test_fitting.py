"""Laws of density fitting: the electrons are counted, the residual is Coulomb-orthogonal, the fit never over-repels."""

from __future__ import annotations

import numpy as np
import pytest

from scf_accel.fitting import auxiliary_charges, electron_count, fit_density, make_auxmol


@pytest.fixture(scope="module")
def hydrogen_sulfide():
    from pyscf import gto, scf

    mol = gto.M(atom="S 0 0 0.1; H 0.1 0.97 0.93; H 0 -0.97 0.93", basis="def2-svp", verbose=0)
    mf = scf.RHF(mol).density_fit(auxbasis="def2-universal-jfit").run()
    return mol, make_auxmol(mol), mf.make_rdm1()


def test_charges_of_auxiliary_functions_equal_quadrature(hydrogen_sulfide):
    from pyscf import dft

    mol, auxmol, _ = hydrogen_sulfide
    grids = dft.gen_grid.Grids(mol)
    grids.level = 4
    grids.build()
    quadrature = grids.weights @ auxmol.eval_gto("GTOval_sph", grids.coords)
    np.testing.assert_allclose(auxiliary_charges(auxmol), quadrature, atol=2e-4)
    assert np.count_nonzero(auxiliary_charges(auxmol)) > 0


def test_electron_count(hydrogen_sulfide):
    mol, auxmol, dm = hydrogen_sulfide
    assert electron_count(auxmol, fit_density(mol, auxmol, dm)) == pytest.approx(mol.nelectron, rel=1e-3)


def test_residual_is_orthogonal_and_fit_repels_less(hydrogen_sulfide):
    from pyscf import scf

    mol, auxmol, dm = hydrogen_sulfide
    coefficients = fit_density(mol, auxmol, dm)
    metric = auxmol.intor("int2c2e")
    from pyscf import df

    three = df.incore.aux_e2(mol, auxmol, intor="int3c2e", aosym="s1")
    np.testing.assert_allclose(metric @ coefficients, np.einsum("mnP,mn->P", three, dm), atol=1e-8)
    exact = np.einsum("mn,mn", scf.hf.get_jk(mol, dm)[0], dm)
    fitted = coefficients @ metric @ coefficients
    assert 0 < exact - fitted < 1e-3 * exact  # (rho|rho) - (rho~|rho~) = (rho - rho~|rho - rho~) >= 0


def test_spin_densities_are_summed(hydrogen_sulfide):
    mol, auxmol, dm = hydrogen_sulfide
    both = fit_density(mol, auxmol, np.stack([0.75 * dm, 0.25 * dm]))
    np.testing.assert_allclose(both, fit_density(mol, auxmol, dm), atol=1e-10)


def test_unknown_metric(hydrogen_sulfide):
    mol, auxmol, dm = hydrogen_sulfide
    with pytest.raises(ValueError, match="allowed is 'coulomb'"):
        fit_density(mol, auxmol, dm, metric="overlapp")
