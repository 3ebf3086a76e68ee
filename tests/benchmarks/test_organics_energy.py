"""benchmarks/organics_energy.py: the DFT calculator gives the labels, what counts as whole, tables of the rows that are there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

pytest.importorskip("pyscf")
pytest.importorskip("rdkit")

from rdkit import Chem

from mlip import MLIPCalculator
from mlip.configfile import load_config
from mlip.data.frame import Frame
from mlip.defaults import DEFAULT_POTENTIAL
from scf_accel.labels import LabelSettings, compute_labels

FOLDER = str(Path(__file__).resolve().parents[2] / "benchmarks")
sys.path.insert(0, FOLDER)
try:
    import _calibration
    import _organicscalibration
    import organics_energy
    from _dftcalculator import DFTCalculator
finally:
    sys.path.remove(FOLDER)

QUICK = LabelSettings(basis="sto-3g", grid_level=0)


def test_the_calculator_gives_labels_also_from_the_last_density():
    atoms = molecule("H2O")
    atoms.calc = DFTCalculator(QUICK)
    for shift in (0.0, 0.03):
        atoms.positions[0, 2] += shift
        wanted = compute_labels(atoms.numbers, atoms.positions, 0, 0, QUICK)
        assert atoms.get_potential_energy() == pytest.approx(wanted.energy, abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), wanted.forces, atol=1e-3)
    atoms = molecule("CH4")
    atoms.calc = DFTCalculator(QUICK)
    assert atoms.get_potential_energy() < -1000


def test_what_is_whole():
    first = molecule("CH3CH2OH")
    near = first.copy()
    near.rattle(0.05, seed=0)
    assert organics_energy.is_whole(first, near)
    gone = first.copy()
    gone.positions[-1] += [0.0, 0.0, 3.0]
    assert not organics_energy.is_whole(first, gone)
    met = first.copy()
    met.positions[-1] = met.positions[-2] + [0.0, 0.0, 0.75]
    assert not organics_energy.is_whole(first, met)


@pytest.mark.parametrize("smiles", organics_energy.FRAGMENTS)
def test_fragments_have_their_dihedral_and_are_in_no_list(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert len(mol.GetSubstructMatch(Chem.MolFromSmarts(organics_energy.FRAGMENTS[smiles]))) == 4
    for name in ("molecules.smi", "molecules-wide.smi", "molecules-many.smi"):
        lines = (Path(FOLDER).parent / "datasets" / "organics" / name).read_text(encoding="utf-8").splitlines()
        assert smiles not in {Chem.CanonSmiles(line.split()[0]) for line in lines if line[0] != "#"}


class Honest:
    """A model whose errors are drawn from the standard deviations that it states."""

    def __init__(self, scale=1.0):
        self.scale, self.rng = scale, np.random.default_rng(0)

    def row(self, name, frames, size):
        std = self.rng.uniform(10.0, 100.0, size=(frames, size))
        parts = _organicscalibration.summary(np.abs(self.rng.normal(scale=std * self.scale)).ravel(), std.ravel())
        return {"key": f"calibration {name}", "energy": parts, "force": parts, "largest": std.max(1).tolist()}


def test_calibration_of_an_honest_and_of_a_boastful_model(tmp_path):
    rows = [Honest().row("known", 100, 40), Honest(3.0).row("strange", 50, 40)]
    rows[1]["largest"] = [number + 200.0 for number in rows[1]["largest"]]
    columns, (known, strange) = _organicscalibration.calibration_table(rows)
    assert known[columns.index("AUROC")] == "" and strange[columns.index("AUROC")] == "1.00"
    assert known[columns.index("above 95 %")] == "5 %" and strange[columns.index("above 95 %")] == "100 %"
    assert float(known[columns.index("bins")]) < 1.15 and 2.6 < float(strange[columns.index("bins")]) < 3.5
    assert _calibration.auroc(np.arange(5.0), np.arange(5.0)) == 0.5
    _organicscalibration.calibration_plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


MOLECULES = {"O": [[1.0, 900.0, 3]], "CCO": [[2.0, 10.0, 9], [4.0, 30.0, 9]], "CO": [[9.0, 500.0, 6]], "CCC": [[6.0, 50.0, 11]]}


def test_the_config_gives_its_data_without_the_model_that_it_starts_from():
    config = load_config(organics_energy.CONFIG, organics_energy.DATA_ALONE)
    assert config.model.init_from is None and config.heads == ("energy",) and config.data.test == 0.1


def test_only_rows_of_the_model_are_shown(tmp_path, monkeypatch):
    weights = MLIPCalculator().fingerprint()
    about = {"commit": "abc", "model": "m", "atoms": 9, "drift": 0.01, "temperature": 301.0, "whole": True}
    rows = [{"key": "nve CCO", "weights": weights, **about}, {"key": "nve CCC", "weights": "other", **about}]
    (tmp_path / "organics_energy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["organics_energy.py", "--table", "--output", str(tmp_path)])
    organics_energy.main()
    text = (tmp_path / "organics_energy.md").read_text()
    assert "| `CCO` |" in text and "CCC" not in text and "other" not in text
    monkeypatch.setattr(sys, "argv", ["organics_energy.py", "--table", "--output", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="no row of this model"):
        organics_energy.main()


def test_standard_deviations_of_ions_as_if_they_were_neutral():
    methyl = molecule("CH3")
    frames = [
        Frame(methyl.numbers, methyl.positions, charge=charge, spin=1 - charge, energy=-1078.0, forces=np.zeros((4, 3)))
        for charge in (0, 1)
    ]
    found = _organicscalibration.standard_deviations(DEFAULT_POTENTIAL, frames)
    assert found["largest"][0] == found["largest"][1] > 0 and found["force"]["rmse"] > 0 and found["energy"]["rmse"] > 0


def test_tables_of_rows_that_are_there(tmp_path, capsys):
    error = {"mae": 2.0, "rmse": 4.0}
    rows = [
        {"key": "errors", "frames": 9, "molecules": 3, "errors": {"energy_per_atom": error, "forces": error}},
        {"key": "nve CCO", "atoms": 9, "drift": 0.01, "temperature": 301.0, "whole": True},
        {"key": "torsion CCNC(C)=O", "angles": [0.0, 90.0], "model_meV": [0.0, 90.0], "dft_meV": [0.0, 100.0], "unfinished": 0},
    ]
    for rmsd, converged in ((0.01, True), (0.2, True), (0.01, False)):
        ours = {"converged": converged, "steps": 12, "rmsd": rmsd, "largest": rmsd}
        rows[0]["by_molecule"] = MOLECULES
        rows.append({"key": f"relax {len(rows)}", "atoms": 9, "dft_converged": True, "dft_steps": 3, **ours})
    rows.append({"key": f"plain {len(rows) - 1}", "atoms": 9, "dft_converged": False, "dft_steps": 100})
    lines = [json.dumps({**row, "commit": "abc", "model": "m", "weights": "0"}) + "\n" for row in rows]
    (tmp_path / "organics_energy.jsonl").write_text("".join(lines))
    store = organics_energy.Store(tmp_path / "organics_energy.jsonl")
    organics_energy.write(store.rows, tmp_path)
    text = (tmp_path / "organics_energy.md").read_text()
    assert "energy MAE 2.0, RMSE 4.0 meV/atom" in text and "| `CCO` | 9 | +0.0100 | 301 | yes |" in text
    assert "over the 3 frames of 8 atoms and more: 4.0 meV/atom, 30 meV/A" in text and "| `CCO` | 3 | 20 | 9 |" in text
    assert text.index("| `O` | 1 |") < text.index("| `CO` | 9 |") < text.index("| `CCC` | 6 |") < text.index("| `CCO` | 3 |")
    assert "1 of 3 converged and within 0.05 A" in text and "2 of 3" in text
    assert "| no | 3 | 100 (not converged) | 0.010 | 0.010 |" in text and "| yes | 3 |  | 0.200 | 0.200 |" in text
    assert "| `CCNC(C)=O` | 100 | 90 | 5 | 10 | 0 |" in text
    assert (tmp_path / "organics_energy_torsion.png").stat().st_size > 1000
