"""What benchmarks/uncertainty.py trains and tests on: sets with structures that the training does not cover, and committees.

AcAc: trained at 300 K. Organics: split by molecule; of the molecules with sulfur only H2S is trained on, so that sulfur is an
element which the models know but have hardly seen.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list

from mlip.data.frame import Frame, frame_extra
from mlip.data.hdf5 import HDF5Frames
from mlip.data.readers import to_atoms
from mlip.data.writer import write_frames

ROOT = Path(__file__).resolve().parents[1]
ACAC = ROOT.parent / "shared" / "data" / "acac"
SEEDS = (0, 1, 2)
EPOCHS = {"acac": 16, "organics": 20}
RARE, KEPT = 16, ("S", "[S]")
"""Atomic number of the element that is left out, and the molecules with it that are not."""
SHARE = 0.15
STRETCHES = (1.2, 1.5)


def organics_sets(folder: Path) -> dict[str, Path]:
    """``train``, ``test`` (other molecules) and ``sulfur``, made once from datasets/organics."""
    paths = {name: folder / f"organics-{name}.h5" for name in ("train", "test", "sulfur")}
    if all(path.exists() for path in paths.values()):
        return paths
    frames = HDF5Frames(ROOT / "datasets" / "organics" / "organics.h5", load_density=False)
    molecules = frame_extra(frames, "molecule")
    assert molecules is not None
    names = molecules.astype(str)
    rare = {name for name, frame in zip(names, frames, strict=True) if RARE in frame.atomic_numbers and name not in KEPT}
    atoms = {name for name, frame in zip(names, frames, strict=True) if len(frame) == 1}
    common = sorted(set(names) - rare - atoms - set(KEPT))
    tested = set(np.random.default_rng(0).permutation(common)[: round(SHARE * len(common))].tolist())
    attrs = {key: frames.attrs[key] for key in ("level_of_theory", "licence") if key in frames.attrs}
    chosen = {"train": set(names) - rare - tested, "test": tested, "sulfur": rare}
    for part, path in paths.items():
        kept = [_plain(frame) for name, frame in zip(names, frames, strict=True) if name in chosen[part]]
        write_frames(path, kept, attrs)
    return paths


def _plain(frame: Frame) -> Frame:
    return replace(frame, density_coefficients=None, extras={"molecule": frame.extras["molecule"]})


def stretched(atoms: Atoms, factors: Sequence[float] = STRETCHES) -> Iterator[Atoms]:
    """Copies with one bond lengthened: the first, in order of atoms, whose cut splits the molecule; the smaller part moves."""
    pairs = [(int(i), int(j)) for i, j in zip(*neighbor_list("ij", atoms, natural_cutoffs(atoms, 1.15)), strict=True) if i < j]
    for bond in pairs:
        part = _side(len(atoms), [pair for pair in pairs if pair != bond], bond[1])
        if bond[0] in part:
            continue
        moved = part if 2 * len(part) <= len(atoms) else set(range(len(atoms))) - part
        still, end = bond if bond[1] in moved else bond[::-1]
        vector = atoms.positions[end] - atoms.positions[still]
        for factor in factors:
            copy = atoms.copy()
            copy.positions[sorted(moved)] += (factor - 1) * vector
            yield copy
        return


def torsions(atoms: Atoms, step: float = 20.0) -> Iterator[Atoms]:
    """Copies of acetylacetone with one acetyl group turned about the bond to the central carbon, every ``step`` degrees."""
    bonds = set(zip(*(part.tolist() for part in neighbor_list("ij", atoms, natural_cutoffs(atoms, 1.15))), strict=True))
    carbons = [i for i, symbol in enumerate(atoms.symbols) if symbol == "C"]
    near = {i: [j for j in range(len(atoms)) if (i, j) in bonds] for i in range(len(atoms))}
    oxidised = [i for i in carbons if any(atoms.symbols[j] == "O" for j in near[i])]
    centre = next(i for i in carbons if i not in oxidised and sum(j in carbons for j in near[i]) == 2)
    first, second = (j for j in near[centre] if j in carbons)
    methyl = next(j for j in near[second] if j in carbons and j != centre)
    pairs = [(i, j) for i, j in bonds if i < j and {i, j} != {centre, second}]
    part = sorted(_side(len(atoms), [pair for pair in pairs if not set(pair) & {first, centre}], second))
    for angle in np.arange(step, 181.0, step):
        copy = atoms.copy()
        copy.rotate_dihedral(first, centre, second, methyl, angle, indices=part)
        yield copy


def _side(count: int, pairs: Sequence[tuple[int, int]], start: int) -> set[int]:
    """Atoms connected to ``start``."""
    found, new = {start}, [start]
    while new:
        atom = new.pop()
        near = {b if a == atom else a for a, b in pairs if atom in (a, b)} - found
        found |= near
        new += sorted(near)
    return found


def stretched_file(folder: Path, tested: Path) -> Path:
    """Labels (PBE/def2-SVP as organics.h5, by ``scf-accel label``) of stretched test molecules, one frame of each molecule."""
    done = folder / "organics-stretched.h5"
    if done.exists():
        return done
    from ase.io import write

    seen: dict[str, Atoms] = {}
    for frame in HDF5Frames(tested):
        seen.setdefault(frame.extras["molecule"], to_atoms(frame))
    structures = [copy for atoms in seen.values() if len(atoms) <= 7 for copy in stretched(atoms)]
    for atoms in structures:
        atoms.calc, atoms.info = None, {}
    source = folder / "stretched.xyz"
    write(source, structures, format="extxyz")
    command = [sys.executable, "-m", "scf_accel.cli", "label", str(source), str(done), "--workers", "1"]
    subprocess.run(command, check=True, cwd=ROOT)
    return done


def train(folder: Path, name: str, seed: int) -> Path:
    """The model of one seed; a finished run is only read, an unfinished one goes on."""
    run = folder / f"{name}-{seed}"
    if (run / "results.json").exists():
        return run / "model.safetensors"
    if name == "acac":
        files = {"train": "train_300K.xyz", "isolated_atoms": "isolated_atoms.xyz", "test.300K": "test_MD_300K.xyz"}
        files |= {"test.600K": "test_MD_600K.xyz"}
        data = [f"data.{key}={ACAC / file}" for key, file in files.items()]
        config = ROOT / "configs" / "acac.yaml"
    else:
        sets = organics_sets(folder)
        data, config = [f"data.train={sets['train']}", f"data.test={sets['test']}"], ROOT / "configs" / "organics-small.yaml"
    settings = [
        *data, "model.preset=small", "training.max_minutes=null", f"training.max_epochs={EPOCHS[name]}",
        f"training.seed={seed}", "training.threads=1", "run.plots=false", f"run.dir={run}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "mlip.cli", "train", str(config)]
    subprocess.run([*command, *(part for s in settings for part in ("--set", s))], check=True, cwd=ROOT)
    return run / "model.safetensors"


if __name__ == "__main__":
    place = ROOT / "runs" / "uncertainty"
    for which in sys.argv[1:] or EPOCHS:
        for number in SEEDS:
            train(place, which, number)
