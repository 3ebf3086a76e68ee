"""From a structure file and options to PySCF objects: whatever is wrong with them becomes one clear line, before any work."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip.data.frame import wrong_coordinates, wrong_elements
from mlip.errors import DataError, StructureError, UserError
from scf_accel.labels import COULOMB_ONLY
from scf_accel.structures import SMILES_SUFFIXES, Structure, lowest_spin
from scf_accel.theory import check_functional, core_potential, load_basis

if TYPE_CHECKING:
    from ase import Atoms
    from pyscf import gto

CLOSEST = 0.1  # Angstrom; nearer nuclei are a broken file, not a molecule


class Notes(io.StringIO):
    """What PySCF prints; it repeats its warnings on stderr by itself."""

    @property
    def warnings(self) -> list[str]:
        """The lines that PySCF marks as warnings."""
        return [line.removeprefix("WARN: ").strip() for line in self.getvalue().splitlines() if line.startswith("WARN: ")]


@dataclass(frozen=True)
class Theory:
    """What to calculate and how far: the options of ``scf-accel run`` that PySCF takes.

    Attributes:
        xc: functional, PySCF's name; ``hf`` is Hartree-Fock.
        basis: orbital basis, PySCF's name; its effective core potentials are used where it has any.
        density_fit: fit the Coulomb and exchange integrals; None: only if ``auxbasis`` is given.
        auxbasis: fitting basis; None: PySCF's choice for functional and basis.
        grid_level: PySCF's integration grid level, 0 to 9; None: PySCF's default, 3.
        conv_tol: SCF energy threshold, Hartree; the orbital-gradient threshold is its square root.
        max_cycle: full-cost cycles.
        max_memory: MB; None: PySCF's default.
    """

    xc: str = "pbe"
    basis: str = "def2-svp"
    density_fit: bool | None = None
    auxbasis: str | None = None
    grid_level: int | None = None
    conv_tol: float = 1e-9
    max_cycle: int = 50
    max_memory: int | None = None

    @property
    def hartree_fock(self) -> bool:
        return self.xc.lower() == "hf"

    @property
    def fitted(self) -> bool:
        return self.auxbasis is not None if self.density_fit is None else self.density_fit


# ---------------------------------------------------------------------------------------------------- structure


def read_molecule(path: Path, index: int = -1, charge: int | None = None, spin: int | None = None) -> Structure:
    """One frame of a file that ASE reads, or of this package's HDF5.

    Args:
        path: the file.
        index: which frame; negative counts from the end.
        charge: total charge; None: as the file says, else 0.
        spin: unpaired electrons; None: as the file says unless ``charge`` changes its charge, else :func:`lowest_spin`.

    Raises:
        DataError, StructureError: no such file or frame, unreadable, periodic, no atoms, coincident or dummy atoms.
    """
    from mlip.data.labels import charge_and_spin

    atoms = _read_frame(path, index)
    if atoms.pbc.any():
        raise StructureError(f"{path}: the structure is periodic (pbc {atoms.pbc.tolist()}); this command takes molecules only")
    _check_atoms(atoms, path)
    file_charge, file_spin = charge_and_spin(atoms, str(path))
    total = file_charge if charge is None else charge
    if spin is None:
        given = file_spin if total == file_charge else None
        spin = lowest_spin(atoms.numbers, total) if given is None else given
    return Structure(atoms.numbers.copy(), atoms.positions.copy(), total, spin, atoms.get_chemical_formula())


def _read_frame(path: Path, index: int) -> Atoms:
    import ase.io

    if not path.is_file():
        raise DataError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}; give a structure file")
    if path.suffix.lower() in SMILES_SUFFIXES - {".txt"}:
        raise DataError(f"{path}: a list of SMILES has no geometry; give a structure file (.xyz, ...)")
    if path.suffix.lower() in {".h5", ".hdf5"}:
        from mlip.data.readers import open_frames, to_atoms

        frames = open_frames(path)
        _check_index(path, index, len(frames))
        return to_atoms(frames[index % len(frames)])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms = ase.io.read(path, index=index)
    except Exception as error:  # the readers of ASE raise nearly anything
        _check_index(path, index, _count_frames(path))
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise DataError(f"{path}: ASE cannot read this file as a structure ({what})") from error
    return atoms[0] if isinstance(atoms, list) else atoms


def _count_frames(path: Path) -> int | None:
    """How many frames a file has; None if that cannot be told."""
    import ase.io

    try:
        return len(ase.io.read(path, index=":"))
    except Exception:
        return None


def _check_index(path: Path, index: int, count: int | None) -> None:
    if count == 0:
        raise DataError(f"{path}: no structure in this file")
    if count is not None and not -count <= index < count:
        raise DataError(f"{path} has {count} frame{'s' * (count > 1)}, numbered from 0; --index {index} is not one of them")


def _check_atoms(atoms: Atoms, path: Path) -> None:
    if len(atoms) == 0:
        raise StructureError(f"{path}: the structure has no atoms")
    if (atoms.numbers == 0).any():
        raise StructureError(f"{path}: atom {int(np.argmin(atoms.numbers))} is a dummy atom (X); remove it")
    if wrong := wrong_elements(atoms.numbers) or wrong_coordinates(atoms.positions, atoms.cell.array):
        raise StructureError(f"{path}: {wrong}")
    distances = np.linalg.norm(atoms.positions[:, None] - atoms.positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    if distances.min() < CLOSEST:
        i, j = sorted(int(k) for k in np.unravel_index(np.argmin(distances), distances.shape))
        raise StructureError(
            f"{path}: atoms {i} and {j} (from 0) are {distances.min():.3g} Angstrom apart; check the file and its length unit"
        )


# ---------------------------------------------------------------------------------------------------- theory


def check_theory(theory: Theory) -> None:
    """Raise :class:`UserError` for what is wrong whatever the molecule: functional, thresholds, contradictions."""
    from pyscf.dft import libxc

    if not theory.hartree_fock:
        check_functional(theory.xc)
    elif theory.grid_level is not None:
        raise UserError("--xc hf has no integration grid; leave --grid-level away")
    if not 0 < theory.conv_tol < np.inf:
        raise UserError(f"--conv-tol {theory.conv_tol}: give a positive threshold in Hartree")
    if theory.auxbasis is not None and not theory.fitted:
        raise UserError(f"--auxbasis {theory.auxbasis} needs density fitting; leave --no-density-fit away")
    name = (theory.auxbasis or "").lower().replace("-", "").replace("_", "")
    exchange = theory.hartree_fock or bool(libxc.is_hybrid_xc(theory.xc))
    if exchange and (name.endswith("jfit") or name in COULOMB_ONLY):
        raise UserError(
            f"--xc {theory.xc} has exact exchange and --auxbasis {theory.auxbasis} fits the Coulomb term only; "
            "give one for both, such as --auxbasis def2-universal-jkfit"
        )


def make_molecule(structure: Structure, theory: Theory, notes: Notes | None = None) -> gto.Mole:
    """The PySCF molecule; its warnings go to ``notes`` and to stderr.

    Raises:
        UserError: impossible charge or spin, a basis that does not fit.
    """
    from pyscf import gto

    numbers, charge, spin = structure.numbers, structure.charge, structure.spin
    electrons = int(np.sum(numbers)) - charge
    if electrons < 1:
        raise UserError(f"charge {charge} leaves {electrons} electrons on {structure.molecule}; change --charge")
    if (electrons - spin) % 2 or not 0 <= spin <= electrons:
        allowed = f"{electrons % 2}, {electrons % 2 + 2}, ..." if electrons > 2 else f"{electrons % 2}"
        raise UserError(
            f"{spin} unpaired electrons are impossible with {electrons} electrons (charge {charge}); "
            f"possible: --spin {allowed}, or another --charge"
        )
    symbols = sorted({gto.mole._symbol(int(z)) for z in numbers})
    for symbol in symbols:
        load_basis("--basis", theory.basis, symbol)
        if theory.auxbasis is not None:
            load_basis("--auxbasis", theory.auxbasis, symbol)
    mol = gto.Mole()
    mol.atom = [(int(z), tuple(map(float, xyz))) for z, xyz in zip(numbers, structure.positions, strict=True)]
    mol.unit, mol.basis, mol.charge, mol.spin = "Angstrom", theory.basis, int(charge), int(spin)
    mol.ecp = {symbol: found for symbol in symbols if (found := core_potential(theory.basis, symbol))}
    mol.verbose = 2
    if notes is not None:
        mol.stdout = notes
    if theory.max_memory is not None:
        mol.max_memory = theory.max_memory
    try:
        mol.build(dump_input=False, parse_arg=False)
        alpha, beta = mol.nelec
    except (KeyError, RuntimeError) as error:
        raise UserError(f"--basis {theory.basis} cannot be put on this structure: {' '.join(str(error).split())}") from error
    if beta < 0:
        raise UserError(f"--spin {spin}: only {alpha + beta} electrons are outside the core potentials of {theory.basis}")
    if alpha > mol.nao:
        raise UserError(f"--spin {spin}: {alpha} orbitals to fill, but --basis {theory.basis} has {mol.nao} functions here")
    return mol


def make_mean_field(mol: gto.Mole, theory: Theory) -> Any:
    """The stock PySCF object: restricted for no unpaired electrons, unrestricted otherwise.

    Raises:
        UserError: a dispersion correction whose program is not installed.
    """
    from pyscf import dft, scf

    if theory.hartree_fock:
        mf: Any = scf.UHF(mol) if mol.spin else scf.RHF(mol)
    else:
        mf = dft.UKS(mol, xc=theory.xc) if mol.spin else dft.RKS(mol, xc=theory.xc)
        if theory.grid_level is not None:
            mf.grids.level = theory.grid_level
    if theory.fitted:
        mf = mf.density_fit(auxbasis=theory.auxbasis)
    mf.conv_tol, mf.max_cycle = theory.conv_tol, theory.max_cycle
    try:
        if mf.do_disp():
            mf.get_dispersion()
    except (ImportError, RuntimeError, ValueError, NotImplementedError, KeyError) as error:
        raise UserError(f"--xc {theory.xc}: no dispersion correction ({' '.join(str(error).split())})") from error
    return mf


# ---------------------------------------------------------------------------------------------------- outputs


def check_outputs(outputs: dict[str, Path | None], source: Path, overwrite: bool) -> None:
    """Raise :class:`UserError` unless every output (``{option: path}``) can be written; makes the folders.

    An output that exists is refused without ``overwrite``; here it is left as it is.
    """
    seen = {source.resolve(): "the structure"}
    for option, path in outputs.items():
        if path is None:
            continue
        if (same := seen.setdefault(path.resolve(), option)) != option:
            raise UserError(f"{option} {path} is the same file as {same}; give another one")
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder; give a file name")
        if path.exists() and not overwrite:
            raise UserError(f"{option} {path} exists already; replace it with --overwrite, or choose another name")
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
            if path.exists():
                with open(path, "ab"):
                    pass
        except OSError as error:
            raise UserError(f"{option} {path} cannot be written ({error.strerror or error})") from error
