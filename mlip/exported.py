"""Exported potentials (.pt2): a model compiled for this kind of machine, with what a calculator has to know about it.

    from mlip.exported import export_model
    export_model(load_model("model.safetensors"), "model.pt2")
    MLIPCalculator("model.pt2")

A .pt2 file holds native code, which runs when it is loaded: unlike a checkpoint it can do anything. Load only files that you, or
people you trust, have made. Nothing but a path that ends in .pt2, given to the calculator, is ever loaded so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlip import __version__
from mlip.elements import MAX_ELEMENT
from mlip.errors import CheckpointError, ConfigError
from mlip.evaluator import hash_weights
from mlip.models import Potential
from mlip.models.compiled import Inputs, PaddedNetwork, compile_network, compiler, sample_inputs
from mlip.models.inference import FrozenNetwork

log = logging.getLogger("mlip")

SUFFIX = ".pt2"
FORMAT, FORMAT_VERSION = "mlip-export", 1
_ENTRY = "mlip.json"
# Relative to the largest entry: compiled sums run in another order.
_CHECK = {"float32": 2e-4, "float64": 1e-10}
# Of the processor's features those that a compiler may use.
_FEATURES = ("adx", "amx", "asimd", "avx", "bmi", "clwb", "f16c", "fma", "gfni", "movdir", "rd", "sha", "sse", "sve", "va", "vp")


class ExportedPotential:
    """A loaded .pt2 file; what :class:`mlip.MLIPCalculator` reads of a model.

    Attributes:
        path: of the file. cutoff: Angstrom. elements: atomic numbers. dtype: of the network. metadata: the model's own.
        fingerprint: of the model. network: as :class:`mlip.models.inference.FrozenNetwork`. species_of_z: element indices.

    Args:
        path: of a file made by :func:`export_model`. Its code runs in this process.

    Raises:
        CheckpointError: it is not such a file, or was made for another torch, processor or system.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        header = read_export(self.path)
        _refuse_other_machine(self.path, header)
        _say_threads(self.path, header)
        self.cutoff, self.elements = float(header["cutoff"]), [int(z) for z in header["elements"]]
        self.dtype, self.metadata = str(header["dtype"]), dict(header["metadata"])
        self.fingerprint = str(header["fingerprint"])
        self.species_of_z = torch.full((MAX_ELEMENT + 1,), -1, dtype=torch.long)
        self.species_of_z[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        try:
            loader = torch._C._aoti.AOTIModelPackageLoader(str(self.path), "model", False, 1, -1)
        except (RuntimeError, OSError) as error:
            why = _first_line(error)
            raise CheckpointError(f"{self.path}: its code cannot be loaded ({why}); export the model again") from error
        # Not torch._inductor.aoti_load_package, which takes 1.5 s to import; the version of torch is known to fit.
        self.network = PaddedNetwork(lambda *inputs: tuple(loader.boxed_run(list(inputs))), self.cutoff)
        self._check(header["check"])

    def _check(self, check: dict[str, Any]) -> None:
        try:
            outputs = self.network(*_unlisted(check["inputs"]))
        except RuntimeError as error:
            raise CheckpointError(f"{self.path}: its code fails ({_first_line(error)}); export the model again") from error
        for name, found, wanted in zip(("energies", "forces"), outputs, check["outputs"], strict=True):
            _compare(f"{self.path}: {name}", found, torch.tensor(wanted, dtype=torch.float64), self.dtype)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return ExportedPotential, (self.path,)


def fingerprint_of(model: Potential) -> str:
    """A hash of everything that the compiled code is made of: weights, their type, hyper-parameters, elements."""
    rest = [model.config.model_dump(mode="json"), model.elements, model.avg_num_neighbors, FORMAT_VERSION, __version__]
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    hash_weights(digest, model)
    return digest.hexdigest()[:24]


def export_model(model: Potential, path: str | Path) -> Path:
    """Compile ``model`` for this machine and write it, checked against the model itself.

    Args:
        model: with an energy head, on the CPU, in the type in which it shall compute. path: ends in .pt2.

    Raises:
        ConfigError: another suffix, no energy head, no C++ compiler, or a failed compilation.
        CheckpointError: the compiled code gives other numbers than the model.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path}: an exported model ends in {SUFFIX}")
    if not model.has_energy:
        raise ConfigError("this model has no energy head: only potentials can be exported")
    if compiler() is None:
        raise ConfigError("no C++ compiler found; install one (g++ or clang++), or name it in the environment variable CXX")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / path.name
        try:
            compile_network(model, draft)
        except Exception as error:  # torch's compiler raises what it likes
            raise ConfigError(f"the model cannot be compiled here: {type(error).__name__}: {_first_line(error)}") from error
        with zipfile.ZipFile(draft, "a") as archive:
            archive.writestr(_ENTRY, json.dumps(_header(model)))
        _compare_with_model(model, ExportedPotential(draft))
        draft.replace(path)
    return path


def read_export(path: Path) -> dict[str, Any]:
    """What an exported model says about itself; runs none of its code."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; make it with: mlip export MODEL {path.name}")
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read(_ENTRY))
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r}")
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not a model of `mlip export`, or a damaged one ({_first_line(error)})") from error
    if header["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: export format {header['format_version']}, this package reads {FORMAT_VERSION}; export the model again"
        )
    return dict(header)


def cache_path(model: Potential) -> Path:
    """Where its compiled form is kept for the next time: in MLIP_CACHE, or mlip in XDG_CACHE_HOME or ~/.cache.

    One for each number of threads: compiled code divides its loops among as many as torch had when it was compiled.
    """
    base = os.environ.get("MLIP_CACHE") or str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlip")
    return Path(base) / f"{fingerprint_of(model)}-torch{torch.__version__}-threads{torch.get_num_threads()}{SUFFIX}"


def cached_export(model: Potential) -> ExportedPotential:
    """The compiled form of ``model`` from the user's cache, made if it is missing there or does not fit this machine."""
    path = cache_path(model)
    try:
        exported = ExportedPotential(path)
        _compare_with_model(model, exported)
        return exported
    except CheckpointError:
        return ExportedPotential(export_model(model, path))


def _header(model: Potential) -> dict[str, Any]:
    inputs = sample_inputs(model, seed=1)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "torch": torch.__version__,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "cutoff": model.cutoff,
        "elements": model.elements,
        "dtype": str(model.dtype).removeprefix("torch."),
        "metadata": model.metadata,
        "fingerprint": fingerprint_of(model),
        "check": {"inputs": [t.tolist() for t in inputs], "outputs": [t.tolist() for t in FrozenNetwork(model)(*inputs)]},
    }


def machine() -> dict[str, Any]:
    """System, processor family and the features of the processor that compiled code may use."""
    features: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                features = {word for word in line.split(":", 1)[1].split() if word.startswith(_FEATURES)}
                break
    except OSError:
        pass
    return {"system": platform.system(), "processor": platform.machine(), "features": sorted(features)}


def _refuse_other_machine(path: Path, header: dict[str, Any]) -> None:
    here, there = machine(), header["machine"]
    again = "export the model again on this machine"
    for what in ("system", "processor"):
        if here[what] != there[what]:
            raise CheckpointError(f"{path}: compiled for {what} {there[what]}, and this is {here[what]}; {again}")
    missing = sorted(set(there["features"]) - set(here["features"]))
    if missing:
        raise CheckpointError(f"{path}: compiled for a processor with {', '.join(missing[:4])}, which this one lacks; {again}")
    if header["torch"] != torch.__version__:
        raise CheckpointError(f"{path}: compiled by torch {header['torch']}, and this is torch {torch.__version__}; {again}")


def _say_threads(path: Path, header: dict[str, Any]) -> None:
    there, here = header.get("threads"), torch.get_num_threads()
    if isinstance(there, int) and there != here:
        log.warning("%s was compiled for %d threads, torch has %d now; export it again where that is slower", path, there, here)


def _compare_with_model(model: Potential, exported: ExportedPotential) -> None:
    """Other numbers of atoms and neighbours than it was traced with."""
    plain = FrozenNetwork(model)
    for atoms, neighbours in ((9, 4), (2, 11), (1, 1)):
        inputs = sample_inputs(model, atoms, neighbours, seed=atoms)
        for name, found, wanted in zip(("energies", "forces"), exported.network(*inputs), plain(*inputs), strict=True):
            _compare(f"compiled code, {atoms} atoms: {name}", found, wanted, exported.dtype)


def _compare(what: str, found: Tensor, wanted: Tensor, dtype: str) -> None:
    difference = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3))
    if not difference < _CHECK[dtype]:
        raise CheckpointError(f"{what} differ from the model's by {difference:.1e} of the largest; run it uncompiled")


def _unlisted(lists: list[Any]) -> Inputs:
    return tuple(torch.tensor(values, dtype=torch.float64 if place == 2 else torch.long) for place, values in enumerate(lists))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
