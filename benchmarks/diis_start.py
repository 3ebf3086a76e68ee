"""What it is worth that DIIS begins with the Fock matrix of a predicted start: SCF cycles with and without, also from ``minao``.

    python benchmarks/diis_start.py      # the five smallest molecules marked "curve" in guess_small.smi, PBE and B3LYP

PySCF leaves the first Fock matrix out of DIIS (``diis_start_cycle = 1``); :func:`scf_accel.warm_start` puts that of a
predicted start into it. Density fitting, def2-SVP, PySCF's other defaults. "kept": the first Fock matrix is in DIIS.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from _common import header, table
from _guessmolecules import guess_molecules
from _scfruns import RESULTS, make_mean_field, make_mol, set_threads

from mlip.files import atomic_write_text
from scf_accel import guess_density_matrix


def cycles(mf: Any, start: Any, kept: bool) -> int:
    """SCF cycles of a copy of ``mf`` from a density matrix (None: minao)."""
    run = mf.copy()
    run.diis_start_cycle = 0 if kept else 1
    run.kernel(start)
    if not run.converged:
        raise RuntimeError("not converged: choose other molecules")
    return int(run.cycles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functionals", nargs="+", default=["pbe", "b3lyp"])
    parser.add_argument("--molecules", type=int, default=5, help="how many, smallest first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "diis_start.md")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    marked = [m for m in guess_molecules(("small",)) if m.curve]
    molecules = sorted(marked, key=lambda m: len(m.structure().numbers))[: arguments.molecules]
    lines, sums = [], {}
    for molecule in molecules:
        mol = make_mol(molecule.structure(), "def2-svp")
        for xc in arguments.functionals:
            mf = make_mean_field(mol, xc, fit=True)
            starts = {"minao": None, "ours": guess_density_matrix(mf)}
            counts = [cycles(mf, start, kept) for start in starts.values() for kept in (False, True)]
            sums[xc] = [a + b for a, b in zip(sums.get(xc, [0] * 4), counts, strict=True)]
            lines.append([molecule.name, str(mol.natm), xc, *map(str, counts)])
            print(*lines[-1], flush=True)
    lines += [["sum", "", xc, *map(str, counts)] for xc, counts in sums.items()]
    columns = ["molecule", "atoms", "functional", "minao", "minao, kept", "ours", "ours, kept"]
    head = header("SCF cycles with and without the first Fock matrix in DIIS", packages=("pyscf", "torch"))
    atomic_write_text(arguments.output, f"{head}\n{table(columns, lines)}")


if __name__ == "__main__":
    main()
