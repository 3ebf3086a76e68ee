"""Nuclear gradients of scf_accel.gradient against PySCF's own: processor seconds, and how far apart the numbers are.

    python benchmarks/gradient_cost.py                 # writes benchmarks/results/gradient_cost.md
    python benchmarks/gradient_cost.py --names "acetaldehyde" --cases "pbe fitted"

Both start from the same converged orbitals (def2-SVP, PySCF grid level 3) and run in turns, ``--repeat`` times; the least
time of each counts. One thread unless ``--threads`` says otherwise; then wall seconds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from pyscf import dft, gto, lib
from rdkit import Chem

from mlip.files import atomic_write_text
from scf_accel import accelerate
from scf_accel.gradient import nuclear_gradient
from scf_accel.structures import structure_from_smiles

MOLECULES = {"acetaldehyde": "CC=O", "a thiadiazole": "Cc1nc(CF)ns1", "aspirin": "CC(=O)Oc1ccccc1C(=O)O"}
CASES = {"pbe fitted": ("pbe", True), "b3lyp fitted": ("b3lyp", True), "pbe exact": ("pbe", False)}


def converged(smiles: str, xc: str, fitted: bool) -> Any:
    """The Kohn-Sham object, stock PySCF's class, with orbitals."""
    structure = structure_from_smiles(smiles, Chem.AddHs(Chem.MolFromSmiles(smiles)), 0)
    atoms = list(zip(structure.numbers.tolist(), structure.positions.tolist(), strict=True))
    mol = gto.M(atom=atoms, basis="def2-svp", verbose=0)
    plain = dft.RKS(mol, xc=xc)
    plain = plain.density_fit() if fitted else plain
    done = accelerate(plain).run()
    plain.mo_coeff, plain.mo_occ, plain.mo_energy = done.mo_coeff, done.mo_occ, done.mo_energy
    plain.e_tot, plain.converged = done.e_tot, True
    if fitted:
        plain.with_df = done.with_df
    plain.grids.build(with_non0tab=True)
    return plain


def measure(mf: Any, response: bool, repeat: int, clock: Any) -> tuple[list[float], float]:
    """Least seconds of PySCF and of ours, and the largest difference, Hartree/Bohr."""
    seconds, found = [np.inf, np.inf], [np.zeros(0), np.zeros(0)]
    for _ in range(repeat):
        for place, gradient in enumerate((mf.nuc_grad_method(), nuclear_gradient(mf))):
            gradient.grid_response = response
            start = clock()
            found[place] = gradient.kernel()
            seconds[place] = min(seconds[place], clock() - start)
    return seconds, float(np.abs(found[0] - found[1]).max())


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=MOLECULES, default=list(MOLECULES))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["pbe fitted", "b3lyp fitted"])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args()
    lib.num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    rows = []
    for name in options.names:
        for case in options.cases:
            mf = converged(MOLECULES[name], *CASES[case])
            for response in (True, False):
                (theirs, ours), off = measure(mf, response, options.repeat, clock)
                size = f"{mf.mol.natm} / {mf.mol.nao}"
                times = [f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.1f}"]
                rows.append([name, size, case, "yes" if response else "no", *times, f"{off:.0e}"])
                print(rows[-1], flush=True)
    columns = ["molecule", "atoms / functions", "functional", "grid response", "PySCF, s", "ours, s", "ratio", "off by, Eh/Bohr"]
    text = header("Nuclear gradients", ("numpy", "pyscf")) + f"- threads: {options.threads}\n\n" + table(columns, rows)
    atomic_write_text(options.output / "gradient_cost.md", text)
    print(text)


if __name__ == "__main__":
    main()
