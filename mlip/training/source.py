"""The model that a fine-tuning run starts from, as far as the run has to remember it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlip.checkpoint import find_model, read_header
from mlip.errors import CheckpointError
from mlip.files import fingerprint
from mlip.models import DensityReference


@dataclass(frozen=True)
class Source:
    """A trained model, known by its header.

    Attributes:
        place: its file, its run folder, or the name of a shipped model.
        digest: SHA-256 of the file.
        header: of the file (:func:`mlip.checkpoint.read_header`).
    """

    place: str
    digest: str
    header: dict[str, Any]

    @classmethod
    def read(cls, place: str) -> Source:
        """The model at ``place``.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        return cls(place, fingerprint(find_model(place)), read_header(place))

    @property
    def name(self) -> str:
        """The last part of its place."""
        return Path(self.place).name

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that it knows."""
        return sorted(int(z) for z in self.header["elements"])

    @property
    def e0(self) -> dict[int, float]:
        """Its E0 by atomic number, eV; empty without an energy head."""
        return {int(z): float(energy) for z, energy in self.header["e0"].items()}

    @property
    def has_energy(self) -> bool:
        """Whether it has an energy head."""
        return bool(self.header["model"].get("energy", True))

    @property
    def density(self) -> DensityReference | None:
        """What its density head is measured against, if it has one."""
        stored = self.header["density"]
        return None if stored is None else DensityReference.from_dict(stored)

    @property
    def theory(self) -> Any:
        """Its level of theory."""
        return self.header["metadata"].get("level_of_theory", "not stated")

    def record(self) -> dict[str, Any]:
        """``fine_tuned_from`` of a model's header: name, hash, theory, and what it was itself fine-tuned from."""
        before = self.header["metadata"].get("fine_tuned_from")
        record = {"name": self.name, "sha256": self.digest, "level_of_theory": self.theory}
        return record if before is None else {**record, "fine_tuned_from": before}

    def change(self) -> str:
        """What became of the file since: ``"has changed"``, ``"is gone"``, or nothing."""
        try:
            return "" if fingerprint(find_model(self.place)) == self.digest else "has changed"
        except (CheckpointError, OSError):
            return "is gone"
