"""From a config to what a training run works on: frames, splits, E0, scales, graphs, an untrained model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from mlip.config import RunConfig
from mlip.data.audit import AuditReport, audit_frames
from mlip.data.batching import BudgetBatchSampler
from mlip.data.density import Metric
from mlip.data.e0 import is_isolated_atom, isolated_atom_energies
from mlip.data.frame import Frame, FrameSubset, count_atoms, electrons_fit
from mlip.data.graph import GraphDataset
from mlip.data.readers import open_files, open_frames
from mlip.data.split import split_digest, split_frames
from mlip.errors import ConfigError
from mlip.files import fingerprint
from mlip.models import DensityReference, Potential, build
from mlip.training.density import METRICS
from mlip.training.finetune import Start, begin, go_on, joined_reference
from mlip.training.graphs import TrainingGraphs, available_metrics, frame_weights
from mlip.training.prepare_density import density_reference, leave_out_broken_symmetry, report_broken_symmetry
from mlip.training.prepare_e0 import bonding_energies, reference_energies
from mlip.training.source import Source

logger = logging.getLogger(__name__)

SCALE_FRAMES = 2000
"""Frames from which force scale and neighbour count are measured; more would not change them."""
TRAIN_TABLE_FRAMES = 500


@dataclass
class Prepared:
    """The data of a run.

    Attributes:
        train, valid: frames. tests: frames by name. audits: report by set.
        elements: atomic numbers in the training set. e0: eV by atomic number. e0_note: where they come from.
        force_rms: root mean square of the training forces, eV/Angstrom. level_of_theory: of the training files.
        fingerprint: of the training files (:func:`fingerprint`). charges, spins: all that occur in the training set, sorted.
        density: basis, baseline and spreads of the density labels; ``None`` without a density head. labelled: training frames
            that have one.
        weights: of the training frames in the loss; ``None`` where all count alike.
        start: the trained network to begin with, in fine-tuning; ``elements`` are then all that it knows.
        split: digest of what was drawn from the training files for ``valid`` and ``tests``; empty where nothing was.
        spins_fit: whether the training frames are molecules with as many electrons as charge and spin need.

    Without an energy head ``e0`` is empty and ``force_rms`` is 1.
    """

    train: Sequence[Frame]
    valid: Sequence[Frame]
    tests: dict[str, Sequence[Frame]]
    elements: list[int]
    e0: dict[int, float]
    e0_note: str
    force_rms: float
    level_of_theory: object
    fingerprint: str
    audits: dict[str, AuditReport] = field(default_factory=dict)
    charges: list[int] = field(default_factory=lambda: [0])
    spins: list[int] = field(default_factory=lambda: [0])
    density: DensityReference | None = None
    labelled: int = 0
    weights: np.ndarray | None = None
    start: Start | None = None
    split: str = ""
    spins_fit: bool = False

    def sets(self) -> dict[str, Sequence[Frame]]:
        """Everything that the results table covers: some of train, valid, tests."""
        return {"train": subset(self.train, TRAIN_TABLE_FRAMES), "valid": self.valid, **self.tests}


def prepare(config: RunConfig, begun: Mapping[str, Any] | None = None) -> Prepared:
    """Open, audit and split the data; find E0 and the force scale.

    Args:
        config: a checked config with absolute data paths.
        begun: content of the training checkpoint of a run that goes on.

    Raises:
        DataError: a label that has a weight is missing or impossible; an element of valid or test is not in train.
        ConfigError: E0 as asked for cannot be had from these data; the validation set lacks the monitored label; worker
            processes with a loss in a metric.
    """
    check_workers(config)
    data = config.data
    needed = set(config.active_terms) - {"density"}
    everything = open_files(data.train, data.keys, data.units)
    audits = {"train": audit_frames(everything, needed=needed)}
    atoms = isolated_atom_energies(_single_atoms(everything))
    train: Sequence[Frame] = without_isolated_atoms(everything)
    tests: dict[str, Sequence[Frame]] = {}
    left, drawn = 1.0, []
    if isinstance(data.test, float):  # set aside first: the same frames whatever the share for validation
        left -= data.test
        train, tests["test"] = split_frames(train, data.test, data.split_seed, data.split_by or "frame")
        drawn.append(tests["test"])
    if isinstance(data.valid, str):
        valid: Sequence[Frame] = without_isolated_atoms(open_frames(data.valid, data.keys, data.units))
        audits["valid"] = audit_frames(valid, needed=needed)
    else:
        train, valid = split_frames(train, data.valid / left, data.split_seed, data.split_by or "frame")
        drawn.append(valid)
    check_monitor(config, valid)
    if "density" in config.heads:
        train = leave_out_broken_symmetry(train)
        report_broken_symmetry("data.valid", valid)
    for name, path in test_files(config).items():
        tests[name] = without_isolated_atoms(open_frames(path, data.keys, data.units))
        audits[name] = audit_frames(tests[name], needed=set())
    source = _source(config, begun)
    present = _elements(train)
    elements = present if source is None else sorted({*present, *source.elements})
    charges, spins, fit = _charges_and_spins(train)
    learned = elements if source is None or source.has_energy or "energy" not in config.heads else present
    for name, frames in {"valid": valid, **tests}.items():
        unknown = [chemical_symbols[z] for z in _elements(frames) if z not in learned]
        if unknown:
            raise ConfigError(f"data.{name} holds {', '.join(unknown)}, which no training frame has; drop those frames")
    energy, density = "energy" in config.heads, "density" in config.heads
    theory = getattr(everything, "attrs", {}).get("level_of_theory")
    reference, labelled = density_reference(config, train, {"valid": valid, **tests}) if density else (None, 0)
    prepared = Prepared(
        train, valid, tests, elements, {}, "no energies", force_rms(train) if energy else 1.0, theory, fingerprint(data.train),
        audits, charges, spins, reference, labelled, frame_weights(train, data.weights) if data.weights else None,
        split=split_digest(*drawn) if drawn else "", spins_fit=fit,
    )  # fmt: skip
    if source is not None:
        return _fine_tuned(config, prepared, source, present, atoms, begun)
    if energy:
        prepared.e0, prepared.e0_note = reference_energies(config, train, elements, atoms)
    return prepared


def _source(config: RunConfig, begun: Mapping[str, Any] | None) -> Source | None:
    """The trained model that the run starts from, or has started from; ``None``: from scratch."""
    if config.model.init_from is None:
        return None
    return Source.read(config.model.init_from) if begun is None else Source(**begun["start"]["source"])


def _fine_tuned(
    config: RunConfig, data: Prepared, source: Source, present: list[int], atoms: dict[int, float], begun: Mapping[str, Any] | None
) -> Prepared:
    """``data`` with the network to start from; ``present`` are the elements of the training frames."""
    density = data.density
    if density is not None:
        density = joined_reference(source, density) if begun is None else DensityReference.from_dict(begun["density"])
    if begun is None:
        start = begin(config, source, data.train, present, atoms, density, data.force_rms)
    else:
        start = go_on(config, begun, density)
    return replace(data, density=density, e0=start.e0, e0_note=start.e0_note, start=start)


def check_workers(config: RunConfig) -> None:
    """Refuse worker processes where they would make metric matrices: each epoch's would begin anew, in forked OpenMP.

    Raises:
        ConfigError: that is so.
    """
    if config.data.num_workers and loss_metrics(config):
        raise ConfigError(
            f"data.num_workers is {config.data.num_workers}, and must be 0 with a density loss in a metric (loss.density.kind: "
            f"{config.loss.density.kind}): worker processes would compute the metric matrices again in every epoch"
        )


def check_monitor(config: RunConfig, valid: Sequence[Frame]) -> None:
    """Refuse to monitor the error of a label that no validation frame has.

    Raises:
        ConfigError: that is so.
    """
    label = config.training.monitor.partition("_")[0]
    if label in ("loss", "density"):  # of densities, density_reference does
        return
    if not any((value := getattr(frame, label)) is not None and np.isfinite(value).any() for frame in valid):
        raise ConfigError(
            f"training.monitor is {config.training.monitor}, and no validation frame has a label {label}; "
            "monitor loss or another label, or give data.valid that has it"
        )


def test_files(config: RunConfig) -> dict[str, str]:
    """Test files by the name they get in the table."""
    test = config.data.test
    if test is None or isinstance(test, float):
        return {}
    return {"test": test} if isinstance(test, str) else dict(test)


def subset(frames: Sequence[Frame], count: int) -> Sequence[Frame]:
    """At most ``count`` frames, evenly spread."""
    if len(frames) <= count:
        return frames
    return FrameSubset(frames, np.linspace(0, len(frames) - 1, count).astype(np.int64))


def _single_atoms(frames: Sequence[Frame]) -> Sequence[Frame]:
    return FrameSubset(frames, np.flatnonzero(count_atoms(frames) == 1))


def without_isolated_atoms(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The frames without isolated atoms: those give E0, there is nothing else to learn from them."""
    single = [int(i) for i in np.flatnonzero(count_atoms(frames) == 1) if is_isolated_atom(frames[int(i)])]
    return FrameSubset(frames, np.setdiff1d(np.arange(len(frames)), single)) if single else frames


def _elements(frames: Sequence[Frame]) -> list[int]:
    found: set[int] = set()
    for frame in frames:
        found.update(np.unique(frame.atomic_numbers).tolist())
    return sorted(int(z) for z in found)


def _charges_and_spins(frames: Sequence[Frame]) -> tuple[list[int], list[int], bool]:
    """Total charges and numbers of unpaired electrons that occur, sorted; 0 where a frame says nothing. And whether all frames are
    molecules with as many electrons as these need, so that they mean something."""
    charges, spins, fit = set(), set(), True
    for frame in frames:
        charge, spin = int(frame.charge), int(frame.spin)
        charges.add(charge)
        spins.add(spin)
        fit = fit and not frame.pbc.any() and electrons_fit(frame.atomic_numbers, charge, spin)
    return sorted(charges), sorted(spins), fit


def force_rms(frames: Sequence[Frame]) -> float:
    """Root mean square of the force components, eV/Angstrom; 1 where there are no forces."""
    total, count = 0.0, 0
    for frame in subset(frames, SCALE_FRAMES):
        if frame.forces is not None:
            known = frame.forces[np.isfinite(frame.forces)]
            total, count = total + float(np.square(known, dtype=np.float64).sum()), count + known.size
    return max((total / count) ** 0.5, 1e-3) if count else 1.0


def training_graphs(config: RunConfig, prepared: Prepared, cutoff: float) -> TrainingGraphs:
    """Graphs of the training set, held in memory up to ``data.cache_mb``, with what the loss needs."""
    return TrainingGraphs(
        prepared.train, cutoff, int(config.data.cache_mb * 2**20), prepared.density, loss_metrics(config), prepared.weights
    )


def loss_metrics(config: RunConfig) -> tuple[Metric, ...]:
    """The metric that the loss of the density needs, if any."""
    kind = config.loss.density.kind
    return tuple(metric for metric in METRICS if metric == kind and "density" in config.active_terms)


def validation_graphs(config: RunConfig, prepared: Prepared, cutoff: float) -> TrainingGraphs:
    """Graphs of the validation set with all metrics that can be had: errors are reported in each. None is held in memory."""
    metrics = available_metrics()
    if config.training.monitor in ("density_coulomb", "density_overlap") and not metrics:
        raise ConfigError(
            f"training.monitor is {config.training.monitor}, which needs PySCF: pip install 'mlip-scf-accel[scf]', or monitor "
            "loss or density_rmse"
        )
    metrics = metrics or loss_metrics(config)
    return TrainingGraphs(prepared.valid, cutoff, 0, prepared.density, metrics)  # the Validator keeps batches


def training_batches(config: RunConfig, graphs: GraphDataset, rank: int = 0, world_size: int = 1) -> BudgetBatchSampler:
    """The batches of the config: 8 frames each where it does not say."""
    data = config.data
    size = 8 if data.batch_size is None and data.max_atoms is None and data.max_edges is None else data.batch_size
    return BudgetBatchSampler(
        graphs.num_atoms, graphs.num_edges if data.max_edges else None, data.max_atoms, data.max_edges, size,
        seed=config.training.seed, rank=rank, world_size=world_size,
    )  # fmt: skip


def new_model(config: RunConfig, prepared: Prepared) -> Potential:
    """The untrained model, scaled to the training set; in fine-tuning the trained one to start from."""
    if prepared.start is not None:
        return copy.deepcopy(prepared.start.model)
    fields = config.model.resolve()
    graphs = GraphDataset(subset(prepared.train, SCALE_FRAMES), fields.cutoff, cache_bytes=0)
    return build(
        fields, prepared.elements, e0=prepared.e0, energy_scale=prepared.force_rms,
        avg_num_neighbors=graphs.avg_num_neighbors,
        bonding_energy=bonding_energies(prepared.train, prepared.e0, prepared.elements) if "energy" in config.heads else None,
        density=prepared.density,
        dtype=config.training.precision, seed=config.training.seed,
    )  # fmt: skip
