"""A stretched copy has one bond longer by the factor, everything else as it was."""

from __future__ import annotations

import numpy as np
import pytest

from mlip.errors import StructureError
from scf_accel.stretching import stretched, two_sides
from scf_accel.structures import Perturbations, make_groups, read_smiles, structure_from_smiles


def geometry(tmp_path, smiles):
    path = tmp_path / "one.smi"
    path.write_text(smiles + "\n", encoding="utf-8")
    ((name, molecule),) = read_smiles(path)
    return molecule, structure_from_smiles(name, molecule, 0).positions


def distances(positions):
    return np.linalg.norm(positions[:, None] - positions[None], axis=-1)


@pytest.mark.parametrize("smiles", ["O", "CCO", "CC1CC1", "C=CC#N", "Cc1ccccc1"])
@pytest.mark.parametrize("factor", [0.9, 1.4])
def test_one_bond_is_longer_and_both_sides_are_rigid(tmp_path, smiles, factor):
    molecule, positions = geometry(tmp_path, smiles)
    for seed in range(4):
        moved, (i, j) = stretched(molecule, positions, factor, np.random.default_rng(seed))
        before, after = distances(positions), distances(moved)
        assert after[i, j] == pytest.approx(factor * before[i, j], rel=1e-12)
        np.testing.assert_allclose(moved.mean(axis=0), positions.mean(axis=0), atol=1e-12)
        bond = molecule.GetBondBetweenAtoms(i, j)
        assert not bond.IsInRing()
        sides = two_sides(molecule, bond)
        assert sorted(sides[0] + sides[1]) == list(range(molecule.GetNumAtoms())) and i in sides[0] and j in sides[1]
        for side in sides:
            np.testing.assert_allclose(*(d[np.ix_(side, side)] for d in (after, before)), rtol=1e-12)
            np.testing.assert_allclose(*((x[side] - x[side[0]]) for x in (moved, positions)), atol=1e-12)  # not turned either


def test_the_two_sides_of_a_bond(tmp_path):
    molecule, _ = geometry(tmp_path, "CCO")
    assert two_sides(molecule, molecule.GetBondBetweenAtoms(0, 1)) == ([0, 3, 4, 5], [1, 2, 6, 7, 8])


def test_every_bond_outside_rings_gets_its_turn(tmp_path):
    molecule, positions = geometry(tmp_path, "CCO")
    found = {stretched(molecule, positions, 1.2, np.random.default_rng(seed))[1] for seed in range(200)}
    assert len(found) == molecule.GetNumBonds()


def test_no_such_bond(tmp_path):
    path = tmp_path / "ring.smi"
    path.write_text("O=C=O\nP12P3P1P23\n", encoding="utf-8")
    groups, left_out = make_groups(path, Perturbations(stretch=((1.2, 1.4), (1.2, 1.4)), seed=3), {})
    origins = [job.structure.origin for group in groups for job in group if job.structure.molecule == "O=C=O"]
    assert len(origins) == 3 and all(origin.startswith("stretched 1.") for origin in origins[1:])
    assert len(left_out) == 2 and all("no bond outside a ring" in line for line in left_out)
    molecule, positions = geometry(tmp_path, "P12P3P1P23")
    with pytest.raises(StructureError, match="no bond outside a ring"):
        stretched(molecule, positions, 1.2, np.random.default_rng(0))
