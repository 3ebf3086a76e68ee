"""The crash-safe store of a labelling run: one small file per finished job in ``OUT.parts``, assembled into ``OUT``.

``settings.json`` there holds the theory; ``ID.npz`` one labelled frame (plain arrays, no pickle); ``ID.failed.json`` a
job that got no label, with its reason and whether the machine was to blame (``transient``: tried again by the next
run). Each file appears by one rename, so a killed run leaves whole files only, and a labelled job is never computed
again. Frames of an ``OUT`` whose parts are not here (a clean clone) count as finished too and are kept.
"""

from __future__ import annotations

import fcntl
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mlip.data.frame import Frame
from mlip.data.hdf5 import HDF5Frames, write_frames
from mlip.errors import DataError, UserError
from mlip.files import atomic_path, atomic_write_text
from scf_accel.labels import Labels
from scf_accel.structures import Job

LISTED_FAILURES = 100  # HDF5 keeps attributes below 64 kB
EXTRAS = ("molecule", "origin", "solver", "scf_cycles", "seconds")


def _read_json(path: Path, advice: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object with at least these names; :class:`DataError` where the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not set(names) <= found.keys():
            raise ValueError(f"an object with {', '.join(names) or 'names'} expected")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); {advice}") from error
    return found


def named(settings: dict[str, Any]) -> dict[str, Any]:
    """With what :meth:`scf_accel.labels.LabelSettings.as_dict` does not name: that there are forces."""
    return {"forces": True, **settings}


class PartStore:
    """The folder of finished jobs beside ``out``.

    Args:
        out: the HDF5 file that the parts belong to; the folder is ``out`` + ``.parts``.

    Attributes:
        kept: ``id -> place`` of the frames of ``out`` that have no part; see :meth:`adopt`.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.folder = self.out.with_name(self.out.name + ".parts")
        self.kept: dict[str, int] = {}

    # ------------------------------------------------------------------------------------------------ state

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Raise :class:`DataError` if parts of another theory lie here."""
        stored = self.read_settings()
        if stored is None:
            return
        stored, settings = named(stored), named(settings)
        different = sorted(k for k in stored.keys() | settings.keys() if stored.get(k) != settings.get(k))
        if different:
            what = ", ".join(f"{k}: {stored.get(k)!r} there, {settings.get(k)!r} now" for k in different)
            raise DataError(f"{self.folder} holds labels of other settings ({what}); choose another output file")

    def read_settings(self) -> dict[str, Any] | None:
        path = self.folder / "settings.json"
        return _read_json(path, "restore it, or choose another output file") if path.is_file() else None

    def open(self, settings: dict[str, Any]) -> None:
        """Create the folder, or check that it holds the same theory; remove half-written files of a killed run."""
        self.check_settings(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if self.read_settings() is None:
            atomic_write_text(self.folder / "settings.json", json.dumps(settings, indent=1) + "\n")

    def adopt(self, settings: dict[str, Any]) -> None:
        """Find the frames that only an existing ``out`` holds, so that assembling keeps them (``kept``).

        Raises:
            UserError: ``out`` is another kind of file, or those frames are of another theory.
        """
        self.kept = {}
        if not self.out.exists():
            return
        advice = "name another output, or replace it with --force"
        try:
            with closing(HDF5Frames(self.out, load_density=False)) as frames:
                theory = frames.attrs.get("level_of_theory")
                places = {frame.id: place for place, frame in enumerate(frames)}
        except DataError as error:
            raise UserError(f"{self.out} exists and is not a labelled file ({error}); {advice}") from None
        for identity in self.done():
            places.pop(identity, None)
        theory = theory if isinstance(theory, dict) else {}
        theory, settings = named(theory), named(settings)
        different = sorted(name for name, value in settings.items() if theory.get(name) != value)
        if places and different:
            what = ", ".join(f"{name}: {theory.get(name)!r} there, {settings[name]!r} now" for name in different)
            raise UserError(f"{self.out} holds {len(places)} frames of another theory ({what}); {advice}")
        self.kept = places

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one writing run; the lock goes with the process, however it dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another run is writing to {self.folder}; wait or choose another output") from None
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            yield

    def done(self) -> set[str]:
        """Ids of the labelled parts."""
        return {path.name[: -len(".npz")] for path in self.folder.glob("*.npz") if not path.name.startswith(".")}

    def failures(self) -> dict[str, dict[str, Any]]:
        """``id -> {reason, molecule, origin, transient}`` of the jobs without a label."""
        found = {}
        for path in sorted(self.folder.glob("*.failed.json")):
            if not path.name.startswith("."):
                entry = _read_json(path, "delete it and run the same command again", ("reason", "molecule", "origin"))
                found[path.name[: -len(".failed.json")]] = {"transient": False, **entry}
        return found

    # ------------------------------------------------------------------------------------------------ writing

    def save(self, job: Job, labels: Labels) -> None:
        """Record a labelled job; a failure recorded for it earlier goes."""
        s = job.structure
        forces: dict[str, Any] = {} if labels.forces is None else {"forces": np.asarray(labels.forces, dtype=np.float64)}
        with atomic_path(self.folder / f"{job.id}.npz") as temporary, open(temporary, "wb") as handle:
            np.savez(
                handle,
                atomic_numbers=np.asarray(s.numbers, dtype=np.int16),
                positions=np.asarray(s.positions, dtype=np.float64),
                charge=np.int64(s.charge),
                spin=np.int64(s.spin),
                energy=np.float64(labels.energy),
                **forces,
                density_coefficients=np.asarray(labels.density_coefficients, dtype=np.float64),
                scf_cycles=np.int64(labels.cycles),
                cycles_counted=np.bool_(True),
                solver=np.array(labels.solver),
                seconds=np.float64(labels.seconds),
                molecule=np.array(s.molecule),
                origin=np.array(s.origin),
            )
            handle.flush()
            os.fsync(handle.fileno())
        (self.folder / f"{job.id}.failed.json").unlink(missing_ok=True)

    def record_failure(self, job: Job, reason: str, transient: bool = False) -> None:
        """Record a job that got no label, and why; ``transient`` where another run may well succeed."""
        s = job.structure
        entry = {
            "reason": " ".join(reason.split()),
            "molecule": s.molecule,
            "origin": s.origin,
            "transient": transient,
        }
        atomic_write_text(self.folder / f"{job.id}.failed.json", json.dumps(entry) + "\n")

    def write_left_out(self, lines: list[str]) -> None:
        """Keep what the planning left out, one line each, in ``left_out.txt``."""
        if lines:
            atomic_write_text(self.folder / "left_out.txt", "\n".join(lines) + "\n")

    # ------------------------------------------------------------------------------------------------ reading

    def read(self, identity: str) -> Frame:
        """The labelled frame ``identity`` with its extras (``EXTRAS``); :class:`DataError` if its file is damaged."""
        path = self.folder / f"{identity}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                data = {name: file[name] for name in file.files}
            broken = [name for name, values in data.items() if values.dtype.kind == "f" and not np.isfinite(values).all()]
            if broken:
                raise ValueError(f"{', '.join(broken)} not finite")
            extras = {name: data[name].item() for name in EXTRAS}
            if extras["solver"].endswith("newton") and "cycles_counted" not in data:
                extras["scf_cycles"] = -1  # unknown: earlier versions did not count second-order cycles
            return Frame(
                atomic_numbers=data["atomic_numbers"].astype(np.int64),
                positions=data["positions"],
                energy=float(data["energy"]),
                forces=data.get("forces"),
                charge=int(data["charge"]),
                spin=int(data["spin"]),
                density_coefficients=data["density_coefficients"],
                id=identity,
                extras=extras,
            )
        except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, MemoryError, zipfile.BadZipFile) as error:
            why = str(error).partition(". ")[0]  # what NumPy says next is how to run a stranger's code
            raise DataError(f"{path} is damaged ({why}); delete it and run the same command again") from error

    def elements(self) -> set[int]:
        """Atomic numbers in the parts, and in ``out`` where frames of it are kept."""
        found: set[int] = set()
        for identity in self.done():
            found.update(self.read(identity).atomic_numbers.tolist())
        if self.kept:
            with closing(HDF5Frames(self.out, load_density=False)) as older:
                for frame in older:
                    found.update(frame.atomic_numbers.tolist())
        return found

    def frames(self) -> Iterator[Frame]:
        """All labelled frames, ordered by molecule, then origin, then id: the same parts give the same file."""
        keys = []
        for identity in self.done():
            frame = self.read(identity)
            keys.append((str(frame.extras["molecule"]), str(frame.extras["origin"]), identity))
        if not self.kept:
            yield from (self.read(identity) for _, _, identity in sorted(keys))
            return
        with closing(HDF5Frames(self.out)) as older:
            for identity, place in self.kept.items():
                extras = older[place].extras
                keys.append((str(extras.get("molecule", "")), str(extras.get("origin", "")), identity))
            for _, _, identity in sorted(keys):
                yield older[self.kept[identity]] if identity in self.kept else self.read(identity)

    def assemble(self, attributes: dict[str, Any], compression: str | None = None) -> int:
        """Write all labelled frames, those ``kept`` included, to ``out`` atomically; return how many.

        Energies and positions are stored in double precision, forces and density coefficients in single (relative
        rounding 6e-8, far below the error of the integration grid). The root attribute ``failed_jobs`` counts the jobs
        that got no label and gives the reasons of the first ``LISTED_FAILURES``.
        """
        if not self.done() and not self.kept:
            raise DataError(f"{self.folder}: no labelled structure yet; nothing to assemble")
        failed = list(self.failures().values())
        reasons = [f"{e['molecule']} ({e['origin']}): {e['reason']}"[:300] for e in failed[:LISTED_FAILURES]]
        attributes = {**attributes, "failed_jobs": {"count": len(failed), "reasons": reasons}}
        single = ("forces", "density_coefficients")
        return write_frames(self.out, self.frames(), attributes, float32=single, compression=compression)
