"""Densities in the sets of a run: which basis, whether the labels are whole, baseline and spreads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from mlip.config import RunConfig
from mlip.data.density import DensityBasis
from mlip.data.frame import Frame, FrameSubset
from mlip.errors import ConfigError, DataError
from mlip.models import DensityReference, density_statistics
from mlip.testing import rotate_coefficients

logger = logging.getLogger(__name__)

LINEAR = 1e-3
"""Farthest that an atom of a linear molecule lies from its axis, Angstrom."""
AXIAL = 1e-3
"""Largest change of an axial density's coefficients by a quarter turn, relative to their norm."""


def file_of(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The frames of the file that a subset was taken from."""
    while isinstance(frames, FrameSubset):
        frames = frames.frames
    return frames


def stated_basis(frames: Sequence[Frame]) -> DensityBasis | None:
    """The density basis that a file states; ``None`` where it states none."""
    stored = getattr(file_of(frames), "attrs", {}).get("density_basis")
    return DensityBasis.from_dict(stored) if stored is not None else None


def count_labelled(frames: Sequence[Frame]) -> int:
    """Frames with a density."""
    return sum(frame.density_coefficients is not None for frame in frames)


def check_labels(name: str, frames: Sequence[Frame], basis: DensityBasis) -> int:
    """How many frames have a density.

    Raises:
        DataError: one of them does not fit the basis, or is not finite; or is of a periodic frame, whose metric would be that of
            a molecule.
    """
    count = 0
    for number, frame in enumerate(frames):
        label = frame.density_coefficients
        if label is None:
            continue
        count += 1
        if np.any(frame.pbc):
            raise DataError(
                f"{name}: frame {number} '{frame.id}' is periodic and has density_coefficients; densities are of molecules: remove "
                "the frame or its label, or set its pbc to false if it is a molecule in a box"
            )
        wanted = int(basis.offsets(frame.atomic_numbers)[-1])
        if len(label) != wanted or not np.isfinite(label).all():
            found = f"{len(label)} coefficients" if len(label) != wanted else "coefficients that are not finite"
            raise DataError(
                f"{name}: density_coefficients of frame {number} '{frame.id}': {found}; {basis.name} has {wanted} functions on its "
                "atoms; correct or remove the frame"
            )
    return count


def breaks_symmetry(frame: Frame, basis: DensityBasis) -> bool:
    """Whether a linear molecule has a density that is not axial: no equivariant model can give it, whatever it learns.

    So is singlet O2 with two electrons in one of two equal orbitals. A quarter turn about the axis shows all that goes with 1, 2
    or 3 times the azimuth; it changes axial densities of PBE by 1e-7 of the coefficients' norm, that of singlet O2 by 0.04.
    """
    label, x = frame.density_coefficients, np.asarray(frame.positions) - np.mean(frame.positions, axis=0)
    if label is None or len(frame) < 2 or len(label) != basis.offsets(frame.atomic_numbers)[-1] or not np.isfinite(label).all():
        return False  # broken labels are for check_labels
    axis = np.linalg.svd(x, full_matrices=False)[2][0]
    if np.abs(x - np.outer(x @ axis, axis)).max() > LINEAR:
        return False
    turn = Rotation.from_rotvec(0.5 * np.pi * axis).as_matrix()
    label = np.asarray(label, dtype=np.float64)
    change = rotate_coefficients(basis, frame.atomic_numbers, label, turn) - label
    return bool(np.linalg.norm(change) > AXIAL * np.linalg.norm(label))


def broken_symmetry(frames: Sequence[Frame]) -> list[int]:
    """Indices of the frames that :func:`breaks_symmetry` finds; none where the file states no basis."""
    basis = stated_basis(frames)
    return [] if basis is None else [index for index, frame in enumerate(frames) if breaks_symmetry(frame, basis)]


def leave_out_broken_symmetry(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The training set without such frames; the log names them."""
    found = broken_symmetry(frames)
    if not found:
        return frames
    logger.warning("data.train: %s: left out (linear, and the density is not axial: no model can give it)", _named(frames, found))
    return FrameSubset(frames, np.setdiff1d(np.arange(len(frames)), found))


def report_broken_symmetry(name: str, frames: Sequence[Frame]) -> None:
    """Name such frames of a set that is compared with; they stay in it."""
    found = broken_symmetry(frames)
    if found:
        words = "their errors cannot vanish (linear, and the density is not axial: no model can give it)"
        logger.warning("%s: %s: %s", name, _named(frames, found), words)


def _named(frames: Sequence[Frame], indices: Sequence[int]) -> str:
    members = [frames[index] for index in indices]
    names = [f"{frame.extras['molecule']} ({frame.id})" if "molecule" in frame.extras else frame.id for frame in members]
    return f"{len(members)} frame{'s' if len(members) > 1 else ''} {', '.join(names)}"


def density_reference(
    config: RunConfig, train: Sequence[Frame], others: Mapping[str, Sequence[Frame]]
) -> tuple[DensityReference, int]:
    """Basis, baseline and spreads of the training set's densities, and how many of its frames have one.

    Args:
        config: of a model with a density head.
        train: frames. others: ``valid`` and the test sets by name.

    Raises:
        ConfigError: no densities in train or valid; a file without ``density_basis``; files of different bases.
        DataError: a label that is broken.
    """
    path, basis = ", ".join(config.data.train_files), stated_basis(train)
    labelled = check_labels("data.train", train, basis) if basis is not None else count_labelled(train)
    if not labelled:
        also = ", or leave out model.density" if "energy" in config.heads else ""
        raise ConfigError(
            f"model.density: no frame of data.train ({path}) has density_coefficients to learn from; label with `scf-accel label`"
            f"{also}"
        )
    if basis is None:
        raise ConfigError(
            f"data.train: {path} has density_coefficients but no root attribute density_basis that says of which functions; "
            "write it with DensityBasis.to_dict() (`scf-accel label` does)"
        )
    counts = {name: _check_other(name, frames, basis) for name, frames in others.items()}
    if not counts["valid"] and ("density" in config.active_terms or config.training.monitor.startswith("density")):
        raise ConfigError("data.valid: no frame has density_coefficients; give a validation set that has, or a fraction")
    theory = getattr(file_of(train), "attrs", {}).get("level_of_theory")
    metric = theory.get("density_metric", "coulomb") if isinstance(theory, Mapping) else "coulomb"
    return density_statistics(train, basis, metric=metric), labelled


def _check_other(name: str, frames: Sequence[Frame], basis: DensityBasis) -> int:
    if not count_labelled(frames):
        return 0
    other = stated_basis(frames)
    if other is None or not same_basis(basis, other):
        found = "no density_basis" if other is None else f"the density basis {other.name}"
        raise ConfigError(
            f"data.{name}: {found}, where data.train has {basis.name}"
            f"{' (of the same name, with other functions)' if other is not None and other.name == basis.name else ''}; "
            "one model predicts one basis: label both sets with the same"
        )
    return check_labels(f"data.{name}", frames, basis)


def same_basis(one: DensityBasis, other: DensityBasis) -> bool:
    """Whether two bases have the same functions on the elements that both have."""
    return all(one.of(z) == other.of(z) for z in set(one.elements) & set(other.elements))


def usable_reference(frames: Sequence[Frame], reference: DensityReference | None) -> DensityReference | None:
    """The reference that labels of a file are compared by, or ``None`` (with a warning where they are of another basis)."""
    if reference is None or not count_labelled(frames):
        return None
    basis = stated_basis(frames)
    if basis is None or not same_basis(reference.basis, basis):
        found = "no density_basis" if basis is None else f"density basis {basis.name}"
        logger.warning("%s: the model predicts %s; densities are not compared", found, reference.basis.name)
        return None
    check_labels("data", frames, reference.basis)
    return reference
