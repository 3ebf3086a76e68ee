"""Laws of auxiliary bases: the same functions as PySCF's in the same order, and coefficients that turn with the molecule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from e3nn import o3

from mlip.data.density import DensityBasis, metric_matrix, to_irreps
from mlip.data.hdf5 import HDF5Frames
from mlip.errors import DataError, UserError
from scf_accel import auxbasis
from scf_accel.auxbasis import (
    atomic_numbers,
    basis_of_auxmol,
    data_to_irreps,
    element_irreps,
    irreps_to_data,
    load_density_basis,
    make_auxmol,
    rotate_coefficients,
    rotation_matrix,
)
from scf_accel.densityerrors import density_on_points

NAMES = ["def2-universal-jfit", "def2-universal-jkfit", "etb:def2-svp:2.0", "cc-pvdz-ri"]
WATER = "O 0 0.1 0; H 0 0.76 0.6; H 0.2 -0.75 0.55"


@pytest.fixture
def double():
    """e3nn's Wigner matrices are made in torch's default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def molecule(**options):
    from pyscf import gto

    return gto.M(**{"atom": WATER, "basis": "sto-3g", "verbose": 0, **options})


def random_rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


def turned(mol, rotation):
    return mol.set_geom_(mol.atom_coords() @ rotation.T, unit="Bohr", inplace=False)


def points_around(count=200):
    return np.random.default_rng(2).normal(scale=2.0, size=(count, 3))


# ------------------------------------------------------------------------------------------------- the same functions


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("etb")])
def test_auxmol_carries_the_functions_of_pyscf(name):
    from pyscf import df

    mol = molecule()
    ours, theirs = make_auxmol(mol, name), df.addons.make_auxmol(mol, name)
    assert ours.ao_labels() == theirs.ao_labels()
    np.testing.assert_allclose(
        ours.eval_gto("GTOval_sph", points_around()), theirs.eval_gto("GTOval_sph", points_around()), atol=1e-12
    )


def test_even_tempered_is_that_of_pyscf():
    from pyscf import df

    mol = molecule(basis="def2-svp")
    theirs = df.addons.make_auxmol(mol, df.aug_etb(mol, beta=1.8))
    ours = make_auxmol(mol, "etb:def2-SVP:1.8")
    points = points_around()
    np.testing.assert_allclose(ours.eval_gto("GTOval_sph", points), theirs.eval_gto("GTOval_sph", points), atol=1e-12)
    assert load_density_basis("ETB:def2-SVP:1.80", [8]).name == "etb:def2-svp:1.8"
    assert load_density_basis("etb:def2-svp:1.8", [8]).num_functions(8) > load_density_basis("etb:def2-svp:3", [8]).num_functions(8)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_every_function(name):
    """DensityBasis -> Mole -> DensityBasis is the same, and each function overlaps with its original by exactly one."""
    from pyscf import gto

    mol = molecule()
    basis = load_density_basis(name, atomic_numbers(mol))
    first = make_auxmol(mol, basis)
    assert basis_of_auxmol(first, basis.name) == basis
    again = gto.M(atom=WATER, basis=basis.pyscf_basis(), verbose=0)
    cross = gto.intor_cross("int1e_ovlp", first, again)
    np.testing.assert_allclose(np.diagonal(cross), 1.0, atol=1e-12)
    np.testing.assert_allclose(cross, first.intor("int1e_ovlp"), atol=1e-12)


@pytest.mark.parametrize("metric", ["overlap", "coulomb"])
def test_metric_of_the_frame_is_that_of_the_auxmol(metric):
    mol = molecule()
    basis = load_density_basis("def2-universal-jkfit", ["O", "H"])
    positions = mol.atom_coords(unit="Angstrom")
    expected = make_auxmol(mol, basis).intor({"overlap": "int1e_ovlp", "coulomb": "int2c2e"}[metric])
    np.testing.assert_allclose(metric_matrix(basis, [8, 1, 1], positions, metric), expected, atol=1e-11)


def test_general_contractions_become_shells_in_pyscfs_order():
    """cc-pVDZ stores all s functions of oxygen in one generally contracted shell."""
    from pyscf import df, gto

    mol = gto.M(atom="O 0 0 0", basis={"O": [[1, [9.0, 0.2, 0.1], [1.5, 0.9, -0.4], [0.3, 0.0, 1.0]], [0, [2.0, 1.0]]]}, verbose=0)
    basis = basis_of_auxmol(mol)
    assert basis.degrees(8) == (0, 1, 1)
    assert [len(shell.exponents) for shell in basis.of(8)] == [1, 2, 3]  # a primitive of coefficient 0 is left out
    ours, theirs = make_auxmol(mol, basis), df.addons.make_auxmol(mol, mol._basis)
    np.testing.assert_allclose(
        ours.eval_gto("GTOval_sph", points_around()), theirs.eval_gto("GTOval_sph", points_around()), atol=1e-12
    )
    assert sum(map(len, load_density_basis("cc-pvdz", [8]).shells.values())) == 6  # 3s 2p 1d


# ------------------------------------------------------------------------------------------------------- rotation


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("l", range(5))
def test_rotation_matrix_is_the_wigner_matrix(l):
    for seed in (0, 1):  # one of them a reflection
        rotation = random_rotation(seed)
        wigner = o3.Irrep(l, (-1) ** l).D_from_matrix(torch.from_numpy(rotation)).numpy()
        np.testing.assert_allclose(to_irreps(l) @ rotation_matrix(l, rotation) @ to_irreps(l).T, wigner, atol=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_density_of_random_coefficients_moves_with_the_molecule(seed):
    """rho'(R r) = rho(r) at points in space, with l up to 4: order, signs and normalisation are right."""
    mol, rotation = molecule(), random_rotation(seed)
    basis = load_density_basis("def2-universal-jkfit", [1, 8])
    assert basis.l_max == 4
    c = np.random.default_rng(seed).normal(size=make_auxmol(mol, basis).nao)
    after = rotate_coefficients(basis, [8, 1, 1], c, rotation)
    points = points_around()
    before = density_on_points(make_auxmol(mol, basis), c, points)
    moved = density_on_points(make_auxmol(turned(mol, rotation), basis), after, points @ rotation.T)
    np.testing.assert_allclose(moved, before, atol=1e-10 * np.abs(before).max())


@pytest.mark.usefixtures("double")
def test_rotation_in_irreps_order_is_that_of_e3nn():
    """What the network does: irreps of the element, turned by e3nn, are our coefficients turned."""
    basis, rotation = load_density_basis("def2-universal-jfit", [8]), random_rotation(3)
    irreps = o3.Irreps(element_irreps(basis, 8))
    assert irreps.dim == basis.num_functions(8)
    c = np.random.default_rng(0).normal(size=irreps.dim)
    theirs = irreps.D_from_matrix(torch.from_numpy(rotation)).numpy() @ data_to_irreps(basis, [8], c)
    np.testing.assert_allclose(irreps_to_data(basis, [8], theirs), rotate_coefficients(basis, [8], c, rotation), atol=1e-10)


def test_orders_are_inverse_and_keep_norms():
    basis, numbers = load_density_basis("def2-universal-jkfit", [1, 6, 17]), [6, 17, 1, 1]
    c = np.random.default_rng(1).normal(size=(basis.offsets(numbers)[-1], 3))
    there = data_to_irreps(basis, numbers, c)
    assert np.abs(there - c).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(there, axis=0), np.linalg.norm(c, axis=0), rtol=1e-13)
    np.testing.assert_allclose(irreps_to_data(basis, numbers, there), c, atol=1e-13)
    with pytest.raises(ValueError, match="this molecule has"):
        data_to_irreps(basis, [1], c)
    with pytest.raises(ValueError, match="orthogonal 3 x 3"):
        rotate_coefficients(basis, numbers, c, 2 * np.eye(3))


# -------------------------------------------------------------------------------------------- ghosts, ECPs, Cartesians


def test_ghosts_carry_nothing_and_core_potentials_change_nothing():
    mol = molecule(atom="I 0 0 0; GHOST-H 0 0 1.6; H1 0 1.6 0; X-O 2 0 0", basis="def2-svp", ecp={"I": "def2-svp"}, spin=None)
    assert mol.atom_charges()[0] < 53
    assert atomic_numbers(mol).tolist() == [53, 0, 1, 0]
    auxmol = make_auxmol(mol)
    basis = load_density_basis(auxbasis.DEFAULT_AUXBASIS, [53, 1])
    assert auxmol.nao == basis.offsets([53, 1])[-1]
    assert set(auxmol._bas[:, 0]) == {0, 2}
    assert basis_of_auxmol(auxmol, basis.name) == basis
    positions = mol.atom_coords(unit="Angstrom")[[0, 2]]
    np.testing.assert_allclose(metric_matrix(basis, [53, 1], positions, "coulomb"), auxmol.intor("int2c2e"), atol=1e-9)


def test_basis_that_differs_between_atoms_or_sits_on_a_ghost_is_refused():
    from pyscf import df

    with pytest.raises(UserError, match="other auxiliary functions than atoms of its element"):
        basis_of_auxmol(molecule(atom="H1 0 0 0; H2 0 0 1", basis={"H1": "sto-3g", "H2": "def2-svp"}))
    with pytest.raises(UserError, match="ghost atom 1"):
        basis_of_auxmol(df.addons.make_auxmol(molecule(atom="He 0 0 0; GHOST-H 0 0 1"), "def2-universal-jfit"))


def test_cartesian_orbitals_get_spherical_auxiliary_functions():
    auxmol = make_auxmol(molecule(cart=True))
    assert not auxmol.cart and auxmol.nao == make_auxmol(molecule()).nao


def test_range_separation_of_the_molecule_reaches_the_auxmol():
    mol = molecule()
    with mol.with_range_coulomb(0.3):
        inside = make_auxmol(mol).intor("int2c2e")
    assert np.abs(inside - make_auxmol(mol).intor("int2c2e")).max() > 1e-3


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "elements", "message"),
    [
        ("def2-univrsal-jfit", [1], "does not know this basis set; did you mean def2universaljfit"),
        ("cc-pvtz-jkfit", ["Au"], "cc-pvtz-jkfit has no functions for Au"),
        ("etb:def2-svp:1.0", [1], "BETA is '1.0'; give a number from 1.2"),
        ("etb:def2-svp:nan", [1], "BETA is 'nan'"),
        ("etb:def2-svp:two", [1], "BETA is 'two'"),
        ("etb:def2-svp", [1], "write etb:ORBITAL_BASIS:BETA"),
        ("etb::2.0", [1], "write etb:ORBITAL_BASIS:BETA"),
        ("etb:def2-svx:2.0", [1], "def2-svx: PySCF does not know this basis set"),
        ("etb:def2-svp:2.0", ["Og"], "def2-svp has no functions for Og"),
        ("autoaux", [1], "depends on the orbital basis"),
        ("def2-universal-jfit", [0], "atomic numbers from 1"),
    ],
)
def test_bad_names(name, elements, message):
    with pytest.raises(UserError, match=message):
        load_density_basis(name, elements)


def test_molecule_outside_the_basis():
    with pytest.raises(DataError, match="no functions for O"):
        make_auxmol(molecule(), load_density_basis("def2-universal-jfit", ["H"]))


# ------------------------------------------------------------------------------------------------- in labelled files


def test_labelling_run_records_the_basis_of_its_coefficients(tmp_path):
    from scf_accel.labelrun import LabelRequest, run_label
    from scf_accel.labels import LabelSettings
    from scf_accel.structures import Perturbations

    smiles, out = tmp_path / "list.smi", tmp_path / "out.h5"
    smiles.write_text("[H]\n[H][H]\n", encoding="utf-8")
    settings = LabelSettings(basis="sto-3g", auxbasis="def2-universal-jkfit", grid_level=0, conv_tol=1e-7)
    run_label(LabelRequest(smiles, out, settings, Perturbations(), workers=1))
    frames = HDF5Frames(out)
    basis = DensityBasis.from_dict(frames.attrs["density_basis"])
    assert basis == load_density_basis("def2-universal-jkfit", [1])
    assert all(len(frame.density_coefficients) == basis.offsets(frame.atomic_numbers)[-1] for frame in frames)


def test_shipped_set_records_the_basis_of_its_coefficients():
    frames = HDF5Frames(Path(__file__).parents[2] / "datasets" / "organics" / "organics.h5")
    basis = DensityBasis.from_dict(frames.attrs["density_basis"])
    assert basis == load_density_basis(frames.attrs["level_of_theory"]["density_auxbasis"], basis.elements)
    for frame in frames[::40]:
        charges = np.concatenate([basis.charges(z) for z in frame.atomic_numbers])
        electrons = frame.atomic_numbers.sum() - frame.charge
        assert charges @ frame.density_coefficients == pytest.approx(electrons, rel=2e-3)
