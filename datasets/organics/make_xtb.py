"""Make the set that organics-energy is pretrained on: many molecules with energies and forces of GFN1-xTB.

    pip install -e '.[label,xtb]'
    python datasets/organics/make_xtb.py          # datasets/organics/molecules-many.smi -> runs/organics-xtb.h5, 10 minutes

A label takes milliseconds, where one of PBE/def2-SVP takes seconds, so there are ten times as many molecules. Its forces are
0.4 eV/A off those of PBE on the frames of organics.h5 (benchmarks/xtb_labels.py): it teaches where atoms like to be, not how
much. The set is not in git.

GFN1-xTB: Grimme, Bannwarth and Shushkov, J. Chem. Theory Comput. 13, 1989 (2017), by tblite.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.units import Bohr, Hartree

from mlip.data.frame import Frame
from mlip.data.hdf5 import write_frames
from scf_accel.structures import Perturbations, lowest_spin, make_groups

HERE = Path(__file__).resolve().parent
METHOD = "GFN1-xTB"
COPIES = Perturbations(gaussian=[(0.02, 0.1)], langevin=[(300.0, 1000.0)], stretch=[(1.1, 1.6)], seed=0)
ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17)
CHUNK = 50


def label(numbers: np.ndarray, positions: np.ndarray, spin: int = 0, method: str = METHOD) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces ``[n, 3]`` (eV/A) at ``positions`` (A); ``spin`` unpaired electrons."""
    from tblite.interface import Calculator

    calculator = Calculator(method, numbers, positions / Bohr, 0.0, spin)
    calculator.set("verbosity", 0)
    result = calculator.singlepoint()
    return float(result.get("energy")) * Hartree, -np.asarray(result.get("gradient")) * Hartree / Bohr


def frames_of(lines: list[str]) -> tuple[list[Frame], int]:
    """Labelled frames of these SMILES, and how many geometries got no label."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.smi"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        groups, _ = make_groups(path, COPIES, {"method": METHOD}, 20)
    frames, failed = [], 0
    for job in (job for group in groups for job in group):
        s = job.structure
        try:
            energy, forces = label(s.numbers, s.positions, s.spin)
        except RuntimeError:  # its SCF does not converge
            failed += 1
            continue
        extras = {"molecule": s.molecule, "origin": s.origin}
        frames.append(Frame(s.numbers, s.positions, energy=energy, forces=forces, spin=s.spin, id=job.id, extras=extras))
    return frames, failed


def atoms() -> Iterator[Frame]:
    """One frame for each isolated atom: their energies are the E0."""
    for z in ELEMENTS:
        numbers, spin = np.array([z]), lowest_spin(np.array([z]), 0)
        energy, forces = label(numbers, np.zeros((1, 3)), spin)
        yield Frame(numbers, np.zeros((1, 3)), energy=energy, forces=forces, spin=spin, id=f"atom-{z}", extras={"origin": "atom"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("smiles", nargs="?", type=Path, default=HERE / "molecules-many.smi")
    parser.add_argument("output", nargs="?", type=Path, default=Path("runs/organics-xtb.h5"))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    lines = [line for line in options.smiles.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    chunks = [lines[start : start + CHUNK] for start in range(0, len(lines), CHUNK)]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    failed = 0

    def labelled() -> Iterator[Frame]:
        nonlocal failed
        yield from atoms()
        with multiprocessing.Pool(options.workers) as pool:
            for done, (frames, missing) in enumerate(pool.imap(frames_of, chunks), start=1):
                failed += missing
                yield from frames
                if done % 20 == 0:
                    print(f"{done * CHUNK}/{len(lines)} molecules", flush=True)

    theory = {"method": METHOD, "code": "tblite", "xc": METHOD}
    count = write_frames(options.output, labelled(), {"level_of_theory": theory, "licence": "CC0-1.0"}, float32=["forces"])
    print(f"{count} labelled frames in {options.output}; {failed} geometries without a label")


if __name__ == "__main__":
    main()
