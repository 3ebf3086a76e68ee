"""Errors of a trained potential on a file, by its ASE calculator: `python _matchedworker.py ours|mace MODEL FILE`, JSON to stdout.

Needs ASE, NumPy and the contestant's package alone, so that it runs in a peer's environment too. RMSE and MAE of energies in
meV/atom and of force components in meV/A.
"""

import json
import sys


def errors(found, wanted):
    """RMSE and MAE, in thousandths."""
    import numpy as np

    difference = 1000 * (np.concatenate(found) - np.concatenate(wanted))
    return {"rmse": float(np.sqrt((difference**2).mean())), "mae": float(abs(difference).mean())}


def main():
    """Evaluate every frame."""
    kind, model, path = sys.argv[1:]
    from ase.io import read

    if kind == "mace":
        from mace.calculators import MACECalculator

        calculator = MACECalculator(model_paths=model, device="cpu", default_dtype="float32")
    else:
        from mlip import MLIPCalculator

        calculator = MLIPCalculator(model)
    energies, forces = ([], []), ([], [])
    for atoms in read(path, ":"):
        energies[1].append([atoms.get_potential_energy() / len(atoms)])
        forces[1].append(atoms.get_forces())
        atoms.calc = calculator
        energies[0].append([atoms.get_potential_energy() / len(atoms)])
        forces[0].append(atoms.get_forces())
    print(json.dumps({"energy": errors(*energies), "forces": errors(*forces), "frames": len(forces[0])}))


if __name__ == "__main__":
    main()
