"""What the sections of a run's config say about each other: checked once, after the model's architecture is known."""

from __future__ import annotations

from mlip.config import TERMS, GateSchedule, RunConfig, head_of
from mlip.errors import ConfigError


def settled(config: RunConfig) -> RunConfig:
    """``config`` with weight 0 for the terms whose head the model lacks, and with the phases of the model's gates.

    Refuses weights and a monitor that are given and need such a head, a model with nothing to learn, and phases of gates that
    the model lacks.

    Raises:
        ConfigError: that is so.
    """
    heads = config.heads
    for name in TERMS:
        head = head_of(name)
        how = "density: {}" if head == "density" else "energy: true"
        term, stage = getattr(config.loss, name), config.training.stage_two
        given = name in config.loss.model_fields_set and "weight" in term.model_fields_set and term.weight > 0
        if head not in heads and (given or (stage is not None and getattr(stage, name))):
            where = f"loss.{name}.weight is {term.weight:g}" if given else f"training.stage_two.{name} is given"
            raise ConfigError(f"{where}, and the model has no {head} head; give model.{how}, or leave the term out")
    monitor = config.training.monitor
    head = head_of(monitor.partition("_")[0])
    if monitor != "loss" and head not in heads:
        raise ConfigError(f"training.monitor is {monitor}, and the model has no {head} head; monitor loss")
    if not config.active_terms:
        terms = ", ".join(f"loss.{name}" for name in TERMS if head_of(name) in heads)
        raise ConfigError(f"nothing to learn for the model's head ({', '.join(heads)}): give {terms} a weight above 0")
    _check_auxiliary(config)
    lacking = {name: getattr(config.loss, name) for name in TERMS if head_of(name) not in heads}
    unweighted = {name: term.model_copy(update={"weight": 0.0}) for name, term in lacking.items()}
    training = config.training.model_copy(update={"gate": _gate_schedule(config)})
    return config.model_copy(update={"loss": config.loss.model_copy(update=unweighted), "training": training})


def _check_auxiliary(config: RunConfig) -> None:
    """Refuse auxiliary densities that teach nothing, or nobody, or that the best weights would be chosen by."""
    terms, monitor = config.active_terms, config.training.monitor
    if not config.loss.density.auxiliary:
        return
    if "density" not in terms or len(terms) < 2:
        raise ConfigError(
            f"loss.density.auxiliary is true, and what is learned is {' and '.join(terms)}; give both heads "
            "(model.energy: true, model.density: {}) a weight above 0, or leave it out"
        )
    if monitor.startswith("density"):
        raise ConfigError(
            f"training.monitor is {monitor}, and loss.density.auxiliary takes the density head from the finished model; "
            "monitor loss or an error of energy or forces"
        )


def _gate_schedule(config: RunConfig) -> GateSchedule | None:
    """The phases of the gates: as given, or the usual ones; ``None`` for a model without gates."""
    gated, schedule = config.model.resolve().gate is not None, config.training.gate
    if schedule is not None and not gated:
        raise ConfigError("training.gate is given, and the model has no path gates; give model.gate ({} takes its defaults)")
    return schedule or (GateSchedule() if gated else None)
