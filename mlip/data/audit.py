"""Can this data be trained on? What labels there are, whether they are whole, and whether they make sense."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mlip.data.allelectron import read_as_ev, unit_text
from mlip.data.consistency import Finding, PairSample, check_consistency
from mlip.data.e0 import CompositionSums
from mlip.data.frame import FARTHEST, Frame, electrons_fit, wrong_coordinates
from mlip.data.geometry import DistanceSurvey
from mlip.errors import DataError

LABELS = ("energy", "forces", "stress")
MAX_SURVEYED = 5000
NET_FORCE_WARNING = 0.005
"""eV/Angstrom per atom."""


@dataclass
class LabelCount:
    """How many frames have a label, and what is wrong with it."""

    present: int = 0
    nan: int = 0
    infinite: int = 0
    first_bad: str = ""


@dataclass
class AuditReport:
    """What :func:`collect_audit` found. ``print(report)`` and rich both show it.

    Attributes:
        frames, atoms: counts.
        elements: atoms of each element, ``Z -> count``.
        labels: per label how many frames have it.
        ranges: ``name -> (lowest, median, highest, unit)``.
        e0: least-squares reference energies, ``Z -> eV``; ``e0_rank`` the rank of the compositions.
        findings: the tests of signs and units, decided or not.
        warnings: odd but usable.
        refusals: reasons not to train, each naming the key.
    """

    frames: int = 0
    atoms: int = 0
    elements: dict[int, int] = field(default_factory=dict)
    labels: dict[str, LabelCount] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float, float, str]] = field(default_factory=dict)
    duplicates: int = 0
    e0: dict[int, float] = field(default_factory=dict)
    e0_rank: int = 0
    findings: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def raise_refusals(self, source: str = "") -> None:
        """Raise DataError with every refusal in one line, if there is any."""
        if self.refusals:
            raise DataError((f"{source}: " if source else "") + "; ".join(self.refusals))

    def __rich__(self) -> Any:
        from mlip.data.display import audit_display

        return audit_display(self)

    def __str__(self) -> str:
        from mlip.data.display import to_text

        return to_text(self)


def audit_frames(
    frames: Sequence[Frame], needed: Collection[str] = ("energy", "forces"), physics: bool = True
) -> AuditReport:
    """Audit ``frames`` in one pass and refuse what cannot be trained on.

    Args:
        frames: the set (lazy ones stay lazy).
        needed: labels that must be there in at least some frames: of ``energy``, ``forces``, ``stress``.
        physics: also refuse labels whose sign or unit contradicts the structures (:mod:`mlip.data.consistency`); off,
            these become warnings.

    Raises:
        DataError: a needed label is missing in all frames, is NaN in part or infinite, or has an impossible unit or
            sign; the message names the label and how many frames.
    """
    report = collect_audit(frames, needed, physics)
    report.raise_refusals(str(getattr(frames, "path", "")))
    return report


def collect_audit(
    frames: Sequence[Frame], needed: Collection[str] = ("energy", "forces"), physics: bool = True
) -> AuditReport:
    """The report of :func:`audit_frames` with its refusals listed instead of raised."""
    unknown = set(needed) - set(LABELS)
    if unknown:
        raise DataError(f"unknown label {', '.join(sorted(unknown))}; allowed: {', '.join(LABELS)}")
    audit = _Audit(len(frames))
    for number, frame in enumerate(frames):
        audit.add(frame, number)
    return audit.report(needed, physics)


class _Audit:
    """Running sums of one pass; a few numbers a frame are kept, and a bounded sample of frames."""

    def __init__(self, count: int):
        self.stride = max(1, -(-count // MAX_SURVEYED))
        self.labels = {label: LabelCount() for label in LABELS}
        self.elements: Counter[int] = Counter()
        self.compositions = CompositionSums()
        self.energies, self.places, self.bounds = array("d"), array("q"), array("d")
        self.max_force, self.rms_force, self.net_force, self.max_stress = (array("d") for _ in range(4))
        self.hashes = array("q")
        self.hash_energies = array("d")
        self.distances, self.sample = DistanceSurvey(), PairSample()
        self.frames = self.atoms = self.periodic = self.odd_spin = 0
        self.zero_forces = self.with_forces = self.not_finite = 0
        self.first_not_finite = self.first_zero_forces = ""

    def add(self, frame: Frame, number: int) -> None:
        name = f"{number}" if frame.id in ("", str(number)) else f"{number} '{frame.id}'"
        self.frames += 1
        self.atoms += len(frame)
        self.elements.update(np.asarray(frame.atomic_numbers).tolist())
        self.periodic += bool(np.any(frame.pbc))
        if wrong_coordinates(frame.positions, frame.cell):
            self.not_finite += 1
            self.first_not_finite = self.first_not_finite or name
            for label in LABELS:
                self._count(frame, label, name)
            return  # nothing can be measured on it
        self.hashes.append(structure_hash(frame))
        self.hash_energies.append(np.nan if frame.energy is None else frame.energy)
        if (frame.charge or frame.spin) and not electrons_fit(frame.atomic_numbers, frame.charge, frame.spin):
            self.odd_spin += 1
        usable = {label: self._count(frame, label, name) for label in LABELS}
        if usable["energy"] and frame.energy is not None:
            place = self.compositions.add(frame)
            self.energies.append(frame.energy)
            self.places.append(-1 if place is None else place)
            self.bounds.append(_energy_bound(frame))
        if usable["forces"] and frame.forces is not None:
            self.max_force.append(float(np.linalg.norm(frame.forces, axis=1).max()))
            self.rms_force.append(float(np.sqrt((frame.forces**2).mean())))
            if len(frame) > 1:
                self.with_forces += 1
                if not np.any(frame.forces):
                    self.zero_forces += 1
                    self.first_zero_forces = self.first_zero_forces or name
                self.net_force.append(float(np.linalg.norm(frame.forces.sum(axis=0))) / len(frame))
        if usable["stress"] and frame.stress is not None:
            self.max_stress.append(float(np.abs(frame.stress).max()))
        if all(usable[label] or getattr(frame, label) is None for label in LABELS):
            self.sample.add(frame)
        if number % self.stride == 0:
            self.distances.add(frame, name)

    def _count(self, frame: Frame, label: str, name: str) -> bool:
        """Count one label; whether it is there and finite. The stress of a frame without periodicity does not count."""
        value = getattr(frame, label)
        if value is None or (label == "stress" and not np.any(frame.pbc)):
            return False
        counts = self.labels[label]
        counts.present += 1
        if np.isfinite(value).all():
            return True
        counts.nan += bool(np.isnan(value).any())
        counts.infinite += bool(np.isinf(value).any())
        counts.first_bad = counts.first_bad or name
        return False

    def report(self, needed: Collection[str], physics: bool) -> AuditReport:
        report = AuditReport(self.frames, self.atoms, dict(sorted(self.elements.items())), self.labels)
        self._ranges(report)
        self._whole(report, needed)
        self._broken(report, needed)
        self._duplicates(report)
        self._magnitudes(report)
        report.findings = check_consistency(self.sample)
        impossible = [f"{finding.label}: {finding.text}" for finding in report.findings if not finding.passed]
        length = self.distances.refusal()
        impossible += [length] if length else []
        unit, sure = (read_as_ev(self.compositions) if len(self.places) else None) or ("", False)
        impossible += [unit_text(unit)] if sure else []
        report.warnings += [unit_text(unit)] if unit and not sure else []
        if physics:
            report.refusals += impossible
        else:
            report.warnings += impossible
        odd = self.distances.warning()
        if odd and not length:
            report.warnings.append(odd)
        if self.odd_spin:
            report.warnings.append(
                f"{self.odd_spin} frames: charge and spin do not fit the number of electrons (spin: unpaired electrons)"
            )
        return report

    def _ranges(self, report: AuditReport) -> None:
        if len(self.places):
            report.e0, report.e0_rank = self.compositions.fit()
            sums, counts = self.compositions.reference(report.e0)
            places, energies = np.array(self.places), np.array(self.energies)
            _range(report, "energy per atom", energies / counts[places], "eV")
            _range(report, "energy per atom above E0", (energies - sums[places]) / counts[places], "eV")
            if report.e0_rank < len(report.e0):
                names = " ".join(chemical_symbols[number] for number in report.e0)
                report.warnings.append(
                    f"E0 by least squares is not determined: {len(report.e0)} elements ({names}), "
                    f"rank {report.e0_rank}; give isolated atoms if other compositions matter"
                )
        _range(report, "largest force of a frame", self.max_force, "eV/A")
        _range(report, "rms force component of a frame", self.rms_force, "eV/A")
        _range(report, "net force per atom", self.net_force, "eV/A")
        _range(report, "largest stress component", self.max_stress, "eV/A^3")
        _range(report, "shortest distance of a frame", self.distances.shortest, "A")

    def _whole(self, report: AuditReport, needed: Collection[str]) -> None:
        """Refuse needed labels that are nowhere, and bad numbers; report partial ones."""
        if not self.frames:
            report.refusals.append("no frames")
            return
        have = [label for label in LABELS if self.labels[label].present] or ["no labels"]
        for label in LABELS:
            counts = self.labels[label]
            if label in needed and not counts.present:
                why = ": none of them is periodic" if label == "stress" and not self.periodic else ""
                report.refusals.append(
                    f"{label}: missing in all {self.frames} frames{why}; the file has {', '.join(have)}. "
                    f"Name its key, or do not ask for {label}"
                )
            elif counts.nan or counts.infinite:
                text = (
                    f"{label}: NaN in {counts.nan} and infinite in {counts.infinite} of {self.frames} frames "
                    f"(first: frame {counts.first_bad}); correct or remove them"
                )
                (report.refusals if label in needed else report.warnings).append(text)
            elif label in needed and counts.present < self.frames:
                absent = self.frames - counts.present
                report.warnings.append(f"{label}: missing in {absent} of {self.frames} frames; the loss masks them")

    def _broken(self, report: AuditReport, needed: Collection[str]) -> None:
        """Refuse structures that are none, and forces that are a placeholder everywhere."""
        if self.not_finite:
            report.refusals.append(
                f"positions or cell: not finite or beyond {FARTHEST:.0e} Angstrom in {self.not_finite} of {self.frames} frames "
                f"(first: frame {self.first_not_finite}); correct or remove them"
            )
        if self.zero_forces and self.zero_forces == self.with_forces:
            text = (
                f"forces: exactly zero on every atom of all {self.with_forces} frames of more than one atom; the "
                "labels are missing. Name the right key, or do not ask for forces"
            )
            (report.refusals if "forces" in needed else report.warnings).append(text)
        elif self.zero_forces:
            report.warnings.append(
                f"forces: exactly zero on every atom in {self.zero_forces} frames of more than one atom "
                f"(first: frame {self.first_zero_forces}); a placeholder for a missing label?"
            )

    def _duplicates(self, report: AuditReport) -> None:
        hashes, energies = np.array(self.hashes), np.array(self.hash_energies)
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(np.diff(hashes[order]) == 0)
        report.duplicates = len(same)
        if len(same):
            report.warnings.append(f"{len(same)} frames repeat an earlier structure")
            apart = np.abs(np.diff(energies[order])[same])
            if (apart > 1e-3).any():
                report.warnings.append(
                    f"{int((apart > 1e-3).sum())} of them with another energy (up to {np.nanmax(apart):.3g} eV apart)"
                )

    def _magnitudes(self, report: AuditReport) -> None:
        """Refuse sizes that no structure has; warn of those that are rare."""
        excess = np.abs(np.array(self.energies)) / np.array(self.bounds)
        if len(excess) and np.median(excess) > 1:
            report.refusals.append(
                f"energy: larger than all-electron energies in {int((excess > 1).sum())} frames; the unit cannot be eV"
            )
        elif len(excess) and excess.max() > 1:
            report.warnings.append(f"energy: {int((excess > 1).sum())} frames are beyond all-electron energies")
        force = np.median(self.max_force) if len(self.max_force) else 0.0
        if force > 100:
            report.refusals.append(f"forces: the largest of a frame is {force:.3g} in the median; the unit is not eV/A")
        elif force > 30:
            report.warnings.append(f"forces: the largest of a frame is {force:.3g} eV/A in the median; right unit?")
        stress = np.median(self.max_stress) if len(self.max_stress) else 0.0
        if stress > 6:
            report.refusals.append(f"stress: {stress:.3g} in the median, which is {stress * 160:.0f} GPa; not eV/A^3")
        elif stress > 0.6:
            report.warnings.append(f"stress: {stress * 160:.0f} GPa in the median; is the unit eV/A^3?")
        for label, sizes in (("energy", np.abs(self.energies)), ("stress", np.array(self.max_stress))):
            zeros = int((np.asarray(sizes) == 0).sum())
            if zeros:
                report.warnings.append(f"{label}: exactly zero in {zeros} frames; a placeholder for a missing label?")
        net = np.array(self.net_force)
        if len(net) and net.max() > NET_FORCE_WARNING:
            count = int((net > NET_FORCE_WARNING).sum())
            report.warnings.append(
                f"forces: the net force exceeds {NET_FORCE_WARNING * 1000:.0f} meV/A per atom in {count} frames "
                f"(largest {net.max() * 1000:.3g} meV/A per atom); no model with conserved momentum fits that"
            )


def _range(report: AuditReport, name: str, values: Any, unit: str) -> None:
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers):
        report.ranges[name] = (float(numbers.min()), float(np.median(numbers)), float(numbers.max()), unit)


def _energy_bound(frame: Frame) -> float:
    """Twice the Thomas-Fermi energy of the atoms, 20.8 Z^(7/3) eV each, and some for other conventions."""
    return float(np.sum(2 * 20.8 * np.asarray(frame.atomic_numbers, dtype=np.float64) ** (7 / 3) + 100.0))


def structure_hash(frame: Frame) -> int:
    """64-bit hash of the elements, positions and cell to 1e-6 Angstrom, pbc, charge and spin."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(np.asarray(frame.atomic_numbers, dtype=np.int64).tobytes())
    for values in (frame.positions, np.asarray(frame.cell)[np.asarray(frame.pbc, dtype=bool)]):
        digest.update(np.round(np.asarray(values) * 1e6).astype(np.int64).tobytes())
    digest.update(np.array([*frame.pbc, frame.charge, frame.spin], dtype=np.int64).tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)
