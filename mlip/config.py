"""The schema of a training run: one YAML file, every key documented where it is typed.

Relative data paths are looked up in the working directory first, then beside the config file, then in the folder above
it (the repository, for a file in ``configs/``). ``run.dir`` is always relative to the working directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mlip.data.units import LabelKeys, Units
from mlip.errors import ConfigError

if TYPE_CHECKING:
    from mlip.models import ModelConfig

LossKind = Literal["l1", "l2", "huber"]
DensityKind = Literal["coulomb", "overlap", "l1", "l2"]
GatePhase = Literal["random", "adaptive", "frozen"]
TERMS = ("energy", "forces", "stress", "density")
"""Terms of a loss, in the order of every table of them."""
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, defaults are checked too."""

    model_config = ConfigDict(extra="forbid", validate_default=True, arbitrary_types_allowed=True, allow_inf_nan=False)


class DataSection(Section):
    """What to learn from, and how it is batched.

    Attributes:
        train: training file (HDF5, extended XYZ, ASE database, OUTCAR, vasprun.xml), or a list of them.
        valid: validation file, or the fraction of ``train`` that is set aside for it.
        test: test file, ``{name: file}``, or the fraction of ``train`` that is set aside for it; never seen by the training.
        keys: names of the labels in the files, where they are not the usual ones.
        units: units of the files, where they are not eV and Angstrom.
        e0: energy of an isolated atom per element in eV: ``auto`` (isolated atoms if there are any, else least
            squares), ``isolated``, ``least_squares``, or given as ``{H: -13.6, ...}``.
        isolated_atoms: a file of one-atom frames for ``e0``.
        split_by: frames with the same value of this extra (such as ``molecule``) stay on one side of the split.
        split_seed: seed of the split.
        weights: frames that count more or less in the loss: ``{extra: {start of its value: weight}}``, such as
            ``{origin: {mmff: 3.0}}``; frames that match nothing count 1, of several starts that match the longest counts.
            They are divided by their mean over the training frames.
            Validation and tests weigh all frames alike.
        batch_size: frames in a step; or give ``max_atoms``/``max_edges`` instead.
        max_atoms: largest number of atoms in a step.
        max_edges: largest number of directed edges in a step.
        valid_batch_size: frames in an evaluation batch (``None``: as many as have at most 512 atoms together).
        num_workers: loader processes; 0 builds batches in the training process (best for graphs held in memory).
        cache_mb: memory for graphs held between epochs, MiB.
    """

    train: str | Annotated[list[str], Field(min_length=1)]
    valid: str | float = 0.1
    test: str | float | dict[str, str] | None = None
    keys: LabelKeys | None = None
    units: Units | None = None
    e0: Literal["auto", "isolated", "least_squares"] | dict[str, float] = "auto"
    isolated_atoms: str | None = None
    split_by: str | None = None
    split_seed: int = 0
    weights: dict[str, dict[str, Positive]] | None = None
    batch_size: Count | None = None
    max_atoms: Count | None = None
    max_edges: Count | None = None
    valid_batch_size: Count | None = None
    num_workers: Annotated[int, Field(ge=0)] = 0
    cache_mb: NotNegative = 2048

    @property
    def train_files(self) -> list[str]:
        """``train`` as a list."""
        return [self.train] if isinstance(self.train, str) else self.train

    @field_validator("valid", "test")
    @classmethod
    def _fraction(cls, value: object) -> object:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(f"{value} is neither a file nor a fraction between 0 and 1")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> DataSection:
        if self.batch_size is not None and (self.max_atoms is not None or self.max_edges is not None):
            raise ValueError("give either batch_size or max_atoms/max_edges, not both")
        if isinstance(self.valid, float) and isinstance(self.test, float) and self.valid + self.test >= 1:
            raise ValueError(f"valid {self.valid:g} and test {self.test:g} leave nothing to train on; their sum must be below 1")
        return self


class ModelSection(Section):
    """The network: a preset, and any field of :class:`mlip.models.ModelConfig` that shall differ from it.

    Attributes:
        preset: ``small``, ``medium`` or ``large``; with path gates, unless ``gate: null`` says otherwise: after equal time pruned
            networks had smaller errors of AcAc's forces and of densities, larger ones of silicon (benchmarks/gate_ablation.py).
        init_from: a trained model to start from (fine-tuning; ``mlip train --from``): a ``.safetensors`` file, a run folder or the
            name of a shipped model. The architecture is then the model's own (:mod:`mlip.initfrom`).
    """

    model_config = ConfigDict(extra="allow")

    preset: str | None = "small"
    init_from: str | None = None

    def resolve(self) -> ModelConfig:
        """The full model config.

        Raises:
            pydantic.ValidationError: an unknown field or an impossible value.
            ConfigError: an unknown preset.
        """
        from mlip.models import ModelConfig

        base = preset_fields(self.preset) if self.preset else {}
        if self.preset and self.init_from is None and not {"gate", "paths"} & set(self.model_extra or {}):
            base = {**base, "gate": {}}
        return ModelConfig.model_validate(merge(base, dict(self.model_extra or {})))


class LossTerm(Section):
    """One label's share of the loss.

    Attributes:
        weight: factor of this term; 0 leaves the label out (it may then be missing in the data), unless it has a weight
            in ``training.stage_two``.
        kind: ``l1`` |x|, ``l2`` x^2, ``huber`` (x^2/2 below ``delta``, delta (|x| - delta/2) above).
        delta: where ``huber`` turns linear, in the label's unit (eV/atom or eV, eV/Angstrom, eV/Angstrom^3).
    """

    weight: NotNegative = 1.0
    kind: LossKind = "huber"
    delta: Positive = 0.01


class EnergyTerm(LossTerm):
    """The energy's share: of the energy per atom (default), or of the total energy."""

    per_atom: bool = True


class DensityTerm(Section):
    """The density's share, of the residual coefficients d = predicted - reference of a frame with N electrons.

    Attributes:
        weight: as in :class:`LossTerm`.
        kind: ``coulomb`` d (P|Q) d / N in mHa, twice the self-repulsion of the error; ``overlap`` d <P|Q> d / N in
            1e-3 Bohr^-3; ``l1`` and ``l2``: mean of |x| and x^2 over the shells, x the root mean square of a shell's
            components in units of the shell's spread in the training set.
        auxiliary: densities are learned for what they teach the energies' network; the best weights are chosen without them,
            and the finished model has no density head.
    """

    weight: NotNegative = 1.0
    kind: DensityKind = "coulomb"
    auxiliary: bool = False


class LossSection(Section):
    """Mean over labelled frames (energy, density), components of atoms (forces) and Voigt components (stress) of a step.

    A term counts only where the model has its head; a weight that is given for a head that is not there is an error.
    """

    energy: EnergyTerm = EnergyTerm()
    forces: LossTerm = LossTerm(weight=1.0)
    stress: LossTerm = LossTerm(weight=0.0, delta=0.001)
    density: DensityTerm = DensityTerm()

    @model_validator(mode="after")
    def _something(self) -> LossSection:
        if not any(getattr(self, name).weight > 0 for name in TERMS):
            raise ValueError("all weights are 0: there is nothing to learn")
        return self


class EarlyStopping(Section):
    """Stop after ``patience`` validations without an improvement of the monitored number by ``min_delta``."""

    patience: Count = 50
    min_delta: NotNegative = 0.0


class StageTwo(Section):
    """Other loss weights in the last part of the run (``None`` keeps a weight). ``start`` is a share of the run.

    A label that has a weight only here is audited, predicted and reported from the start.
    """

    start: Annotated[float, Field(gt=0, lt=1)] = 0.75
    energy: NotNegative | None = None
    forces: NotNegative | None = None
    stress: NotNegative | None = None
    density: NotNegative | None = None


class GateSchedule(Section):
    """Phases of the path gates of ``model.gate``: random subsets, then the strongest paths, then frozen to the end of the run.

    Validation in the random phase evaluates all paths, weighted to the mean over the draws (mlip.nn.gate). Frozen, the network is
    reduced to the chosen paths; the choice of the best weights begins there. Early stopping that would end the run before freezes
    the gates instead, and counts anew.

    Frozen after a fifth instead of half of the run, silicon's forces are 8 % better, AcAc's 3 % worse (gate_ablation.py, one seed).

    Attributes:
        unit: of the two lengths: ``share`` of the run, ``epochs`` or ``steps``. A run that ends before is frozen at its end.
        random: length of the random phase. adaptive: length of the adaptive phase.
    """

    unit: Literal["share", "epochs", "steps"] = "share"
    random: NotNegative = 0.05
    adaptive: NotNegative = 0.15

    @model_validator(mode="after")
    def _lengths(self) -> GateSchedule:
        total = self.random + self.adaptive
        if self.unit == "share" and total >= 1:
            raise ValueError(
                f"random and adaptive are {total:g} of the run together, which leaves nothing for the frozen phase; give shares "
                "with a sum below 1, or set unit: epochs (or steps)"
            )
        if self.unit != "share" and not {"random", "adaptive"} <= self.model_fields_set:
            raise ValueError(f"unit is {self.unit}: give both random and adaptive, in {self.unit}")
        return self

    def phase(self, share: float, epochs: float, steps: int) -> GatePhase:
        """The phase at this place of the run."""
        place = {"share": share, "epochs": epochs, "steps": float(steps)}[self.unit]
        if place < self.random:
            return "random"
        return "adaptive" if place < self.random + self.adaptive else "frozen"


class TrainingSection(Section):
    """How it is optimised.

    Attributes:
        max_epochs: passes over the training set (``None``: no such limit; then ``max_minutes`` is needed).
        max_minutes: wall-clock budget of the whole run, final evaluation included; the learning-rate schedule fits
            itself into it (so the weights depend on the machine's speed; use ``max_epochs`` for reproducible runs).
        lr: peak learning rate of AdamW. weight_decay: decoupled decay, of matrices only.
        warmup: share of the run in which the rate rises linearly. min_lr: rate at the end of the cosine.
        schedule: ``cosine`` or ``constant`` (after the warm-up).
        ema_decay: decay of the running average of the weights that is validated and shipped; 0 switches it off.
        gradient_clip: largest norm of the gradient; ``None`` does not clip.
        early_stopping: stop when validation no longer improves. monitor: what the best weights are chosen by: ``loss``, an
            error of energy or forces, or of the density: ``density_coulomb`` (self-repulsion of the error per electron),
            ``density_overlap`` (relative L2 error), ``density_rmse`` (of the standardised coefficients).
        validate_every: epochs between validations; ``auto`` is 1, but keeps validation below a tenth of the time of
            a run under ``max_minutes``.
        stage_two: other loss weights near the end. gate: phases of the path gates, for a model that has them.
        seed: of weights and batch order. devices: CPU processes or GPUs. threads: CPU threads a process.
        accelerator: ``auto``, ``cpu`` or ``gpu``. precision: of the network (sums of energies are always float64).
    """

    max_epochs: Count | None = None
    max_minutes: Positive | None = None
    lr: Positive = 5e-3
    weight_decay: NotNegative = 1e-3
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr: NotNegative = 1e-5
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    gradient_clip: Positive | None = 10.0
    early_stopping: EarlyStopping | None = None
    monitor: Literal[
        "loss", "energy_mae", "forces_mae", "energy_rmse", "forces_rmse", "density_coulomb", "density_overlap", "density_rmse"
    ] = "loss"
    validate_every: Count | Literal["auto"] = "auto"
    stage_two: StageTwo | None = None
    gate: GateSchedule | None = None
    seed: int = 0
    devices: Count = 1
    threads: Count | None = None
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["float32", "float64"] = "float32"

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSection:
        if self.max_epochs is None and self.max_minutes is None:
            raise ValueError("give max_epochs, max_minutes or both: a run needs an end")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}")
        gate, epochs = self.gate, self.max_epochs
        if gate is not None and gate.unit == "epochs" and epochs is not None and gate.random + gate.adaptive >= epochs:
            raise ValueError(
                f"gate: random and adaptive are {gate.random + gate.adaptive:g} epochs together, which leaves none of max_epochs "
                f"{epochs} for the frozen phase"
            )
        return self


class RunSection(Section):
    """Where the run's files go. ``overwrite`` replaces a finished run or one of another config; an unfinished run of the
    same config is resumed all the same (``--restart`` discards it)."""

    dir: str = "runs/mlip"
    overwrite: bool = False
    plots: bool = True


class RunConfig(Section):
    """A whole training run (see :func:`mlip.configfile.load_config`)."""

    data: DataSection
    model: ModelSection = ModelSection()
    loss: LossSection = LossSection()
    training: TrainingSection = TrainingSection(max_epochs=100)
    run: RunSection = RunSection()

    @property
    def heads(self) -> tuple[str, ...]:
        """``energy``, ``density``: what the model predicts."""
        model = self.model.resolve()
        return tuple(name for name, there in (("energy", model.energy), ("density", model.density is not None)) if there)

    @property
    def active_terms(self) -> tuple[str, ...]:
        """Terms of the loss that have a weight in some part of the run: these labels are needed, predicted, summed."""
        stage, heads = self.training.stage_two, self.heads
        return tuple(
            name
            for name in TERMS
            if head_of(name) in heads
            and (getattr(self.loss, name).weight > 0 or (stage is not None and (getattr(stage, name) or 0) > 0))
        )


def head_of(term: str) -> str:
    """The head that a term of the loss belongs to."""
    return "density" if term == "density" else "energy"


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, nested dictionaries merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def preset_fields(name: str) -> dict[str, Any]:
    """The fields of a named model preset.

    Raises:
        ConfigError: no such preset.
    """
    from mlip.models import PRESETS, preset

    if name not in PRESETS:
        raise ConfigError(f"model.preset: unknown preset {name!r}; allowed: {', '.join(PRESETS)}")
    return preset(name).model_dump()
