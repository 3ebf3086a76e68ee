"""One contestant of speed.py in a process of its own: `python _speedworker.py CONTESTANT SYSTEM`, then JSON requests by line.

Needs ASE, NumPy and the contestant's package alone, so that it runs in a peer's environment too.
"""

import json
import os
import resource
import sys
import time
from importlib.metadata import version

START = time.time()

WARM_UP_SECONDS, STEADY = 60.0, 0.02


def water(molecules):
    """A periodic box of water at 1 g/cm^3 on a lattice, randomly turned."""
    import numpy as np
    from ase import Atoms
    from ase.build import molecule

    rng, side = np.random.default_rng(0), 3.104
    count = round(molecules ** (1 / 3))
    atoms = Atoms(cell=[count * side] * 3, pbc=True)
    for place in range(molecules):
        one = molecule("H2O")
        one.euler_rotate(*rng.uniform(0, 360, 3))
        one.translate(side * np.array([place % count, place // count % count, place // count**2]) - one.get_center_of_mass())
        atoms += one
    return atoms


def crystal(symbol, repeats):
    """A rattled cubic crystal."""
    from ase.build import bulk

    atoms = bulk(symbol, cubic=True) * repeats
    atoms.rattle(0.05, seed=1)
    return atoms


def ethanol():
    """The molecule, not periodic."""
    from ase.build import molecule

    return molecule("CH3CH2OH")


SYSTEMS = {
    "ethanol": ethanol,
    "si64": lambda: crystal("Si", (2, 2, 2)),
    "cu108": lambda: crystal("Cu", (3, 3, 3)),
    "si512": lambda: crystal("Si", (4, 4, 4)),
    "water192": lambda: water(64),
    "water648": lambda: water(216),
}


def ours(size, form, atoms, neighbours):
    """Our calculator, and what versions it runs on; compiles first and starts anew where that has not been done."""
    import torch

    from mlip import MLIPCalculator, __version__, build

    model = build(size, sorted(set(atoms.numbers.tolist())), seed=0, avg_num_neighbors=neighbours)
    versions = f"mlip {__version__}, torch {torch.__version__}"
    if form == "eager":
        return MLIPCalculator(model), versions
    from mlip.exported import cache_path, cached_export

    path = cache_path(model)
    if not path.is_file():
        cached_export(model)
        os.execv(sys.executable, [sys.executable, *sys.argv])  # so that time and memory of the compilation do not count
    return MLIPCalculator(path) if form == "exported" else MLIPCalculator(model, compile=True), versions


def mace(irreps, atoms, neighbours):
    """MACE with random weights (mace-torch)."""
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # as mace sets it: the e3nn it needs pickles its own tables

    import numpy as np
    import torch
    from e3nn import o3
    from mace.calculators import MACECalculator
    from mace.modules import RealAgnosticInteractionBlock, RealAgnosticResidualInteractionBlock, ScaleShiftMACE

    numbers = sorted(set(atoms.numbers.tolist()))
    torch.manual_seed(0)
    model = ScaleShiftMACE(
        r_max=5.0, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, num_interactions=2, num_elements=len(numbers),
        interaction_cls=RealAgnosticResidualInteractionBlock, interaction_cls_first=RealAgnosticInteractionBlock,
        hidden_irreps=o3.Irreps(irreps), MLP_irreps=o3.Irreps("16x0e"), gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(len(numbers)), avg_num_neighbors=neighbours, atomic_numbers=numbers, correlation=3,
        atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )  # fmt: skip
    calculator = MACECalculator(models=[model.float()], device="cpu", default_dtype="float32")
    return calculator, f"mace {version('mace-torch')}, torch {torch.__version__}"


def sevennet(atoms, neighbours):
    """SevenNet with the sizes of SevenNet-0 and random weights (sevenn)."""
    import sevenn._keys as key
    import torch
    from sevenn._const import model_defaults
    from sevenn.calculator import SevenNetCalculator
    from sevenn.model_build import build_E3_equivariant_model
    from sevenn.util import chemical_species_preprocess

    torch.manual_seed(0)
    config = model_defaults({}) | chemical_species_preprocess(sorted(set(atoms.symbols)))
    config |= {
        key.CUTOFF: 5.0, key.LMAX: 2, key.NUM_CONVOLUTION: 5, key.NODE_FEATURE_MULTIPLICITY: 128, key.IS_PARITY: False,
        key.IRREPS_MANUAL: ["128x0e", *["128x0e+64x1e+32x2e"] * 4, "128x0e"], key.SELF_CONNECTION_TYPE: "linear",
        key.SHIFT: 0.0, key.SCALE: 1.0, key.CONV_DENOMINATOR: neighbours,
    }  # fmt: skip
    model = build_E3_equivariant_model(config)
    calculator = SevenNetCalculator(model, file_type="model_instance", device="cpu")
    return calculator, f"sevenn {version('sevenn')}, torch {torch.__version__}"


def nequip(layers, l_max, features, atoms, neighbours):
    """NequIP with random weights, not compiled (nequip)."""
    import torch
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.integrations.ase import NequIPCalculator
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state()
    names = sorted(set(atoms.symbols))
    model = NequIPGNNModel(
        seed=0, model_dtype="float32", r_max=5.0, type_names=names, num_layers=layers, l_max=l_max, num_features=features,
        avg_num_neighbors=neighbours,
    )  # fmt: skip
    species = ChemicalSpeciesToAtomTypeMapper(model_type_names=names, chemical_species_to_atom_type_map={n: n for n in names})
    calculator = NequIPCalculator(model.eval(), "cpu", transforms=[species, NeighborListTransform(r_max=5.0)])
    return calculator, f"nequip {version('nequip')}, torch {torch.__version__}"


def contestant(words, atoms, neighbours):
    """The calculator of a contestant's words, and the versions it runs on."""
    if words[0] == "mace":
        return mace(words[1], atoms, neighbours)
    if words[0] == "sevennet":
        return sevennet(atoms, neighbours)
    if words[0] == "nequip":
        return nequip(*(int("".join(c for c in word if c.isdigit())) for word in words[1:]), atoms, neighbours)
    return ours(*words, atoms, neighbours)


def system_of(name):
    """A system by its name; ``si`` and a number of atoms 8 n^3 for any size of silicon."""
    if name in SYSTEMS:
        return SYSTEMS[name]()
    repeats = round((int(name.removeprefix("si")) / 8) ** (1 / 3))
    return crystal("Si", (repeats,) * 3)


def peak_mb():
    """Largest memory of this process so far, MB; on Linux without what it took to compile, before it started anew."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1.024e-3
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1e-6 if sys.platform == "darwin" else 1.024e-3)


class Steps:
    """Small random moves with energy and forces after each."""

    def __init__(self, atoms):
        import numpy as np

        self.atoms, self.rng = atoms, np.random.default_rng(0)
        self.home = atoms.positions.copy()

    def run(self, count):
        """Seconds of each of ``count`` steps."""
        seconds = []
        for _ in range(count):
            self.atoms.positions = self.home + 0.003 * self.rng.standard_normal(self.home.shape)
            start = time.perf_counter()
            self.atoms.get_potential_energy()
            self.atoms.get_forces()
            seconds.append(time.perf_counter() - start)
        return seconds

    def warm_up(self):
        """Until the shortest step time of five stops falling; returns it."""
        best, end = min(self.run(2)), time.time() + WARM_UP_SECONDS
        while time.time() < end:
            now = min(self.run(5))
            if now > (1 - STEADY) * best:
                break
            best = now
        return best


def main():
    """Build, warm up, say so; then answer requests until the input ends."""
    import numpy as np
    from ase.neighborlist import neighbor_list

    words, system = sys.argv[1].split(), sys.argv[2]
    atoms = system_of(system)
    edges = len(neighbor_list("i", atoms, 5.0))
    neighbours = edges / len(atoms)
    calculator, versions = contestant(words, atoms, neighbours)
    idle = peak_mb()
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    first, start, steps = time.time() - START, time.time(), Steps(atoms)
    best = steps.warm_up()
    ready = {"atoms": len(atoms), "edges": edges, "first_s": first, "warm_up_s": time.time() - start, "step_s": best}
    print(json.dumps(ready | {"idle_mb": idle, "versions": versions, "finite": bool(np.isfinite(energy))}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"peak_mb": peak_mb()} if request.get("memory") else {"seconds": steps.run(request["steps"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
