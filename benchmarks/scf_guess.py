"""SCF initial guesses on molecules that no model was trained on: cycles, full-cost Fock matrices, wall time, energies.

    python benchmarks/scf_guess.py --minutes 60 [--model runs/density]   # measure (goes on where it stopped); then table and plot
    python benchmarks/scf_guess.py --table                               # only table and plot of what is measured
    python benchmarks/scf_guess.py --guesses minao atom oracle           # without a model
    python benchmarks/scf_guess.py --learning-curve 500:runs/d500 runs/curve --minutes 30

Molecules: benchmarks/guess_small.smi (4 to 20 atoms, as in the training set) and guess_large.smi (26 to 60 atoms), MMFF
geometries. One that is in the training list (datasets/organics/*.smi, stereochemistry removed) is left out and named.
PBE/def2-SVP for all, with density fitting of J and, by ``--fit``, without; fifteen of them also B3LYP/def2-SVP, SCAN/def2-SVP and
PBE/def2-TZVP with density fitting. PySCF's defaults: grid level 3, conv_tol 1e-9, at most 50 cycles.

Guesses: ``minao`` and ``atom`` of PySCF; ``ours``, ``scf_accel.warm_start`` with the model that the package ships or
``--model``, its comparison with the stock guess and its fallback included; ``oracle``, the exact fit (def2-universal-jfit,
Coulomb metric) of the converged density, which goes through the same code: what a perfect model would reach.

- RIC: SCF cycles / those from ``minao``.
- ERIC: full-cost Fock matrices / those from ``minao``; the one inside the guess from a density counts as one.
- wall ratio: wall seconds from ``minao`` / those with the guess, from making the mean-field object to the energy: inference,
  guess and check included, loading the model and the oracle's density not. The guesses take turns in who comes first.

``--learning-curve`` takes NAME:PATH, run folders and folders of runs, and measures RIC of ten of the molecules against the number
of training frames that each model's header states; without the comparison with the stock guess, which would hide poor models.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _guessmolecules import GuessMolecule, guess_molecules
from _molecules import Molecule
from _scfruns import RESULTS, ArmError, Job, Store, count_calls, error_text, make_mean_field, make_mol, run_jobs, timed
from scf_wall import Case

from mlip.checkpoint import find_model
from mlip.errors import CheckpointError
from scf_accel import accelerate, warm_start
from scf_accel.predictor import DEFAULT_MODEL, DensityPredictor, ExactPredictor, PredictionError, as_predictor

Row = dict[str, Any]
STOCK = ("minao", "atom")
GUESSES = (*STOCK, "ours", "oracle")
# what to run -> (groups, functional, basis, only the molecules marked "transfer")
CATEGORIES: dict[str, tuple[tuple[str, ...], str, str, bool]] = {
    "large": (("large",), "pbe", "def2-svp", False),
    "small": (("small",), "pbe", "def2-svp", False),
    "b3lyp": (("small", "large"), "b3lyp", "def2-svp", True),
    "scan": (("small", "large"), "scan", "def2-svp", True),
    "tzvp": (("small", "large"), "pbe", "def2-tzvp", True),
}


@dataclass(frozen=True)
class GuessCase(Case):
    """A molecule and method; ``label`` is its key of :data:`CATEGORIES`."""

    molecule: GuessMolecule
    label: str

    def about(self) -> Row:
        """What a row says of its case."""
        return {**super().about(), "case": self.key, "group": self.molecule.group, "category": self.label}

    def seconds(self, runs: int) -> float:
        """Of so many runs, roughly."""
        return 0.4 * runs * self.estimate()


@dataclass(frozen=True)
class Model:
    """What ``ours`` predicts with: a name with the start of the file's SHA-256, and the predictor."""

    label: str
    predictor: Any
    load_seconds: float = 0.0


def find(model: str | None) -> Model:
    """The model of ``--model``, or the one that the package ships; exits where there is none.

    A first prediction, of water, brings in what is loaded at first use.
    """
    started = time.perf_counter()
    try:
        predictor = as_predictor(model)
        reason = predictor.missing() if isinstance(predictor, DensityPredictor) else None
    except CheckpointError as error:
        reason = str(error)
    if reason is not None:
        sys.exit(f"{reason}. Give one with --model, or run the other guesses: --guesses minao atom oracle")
    water = make_mol(Molecule("O", "water", True, "").structure(), "def2-svp")
    with suppress(PredictionError):
        if predictor.refusal(water) is None:
            predictor.coefficients(water)
    return Model(label_of(model) or "ours", predictor, time.perf_counter() - started)


def label_of(model: str | None) -> str | None:
    """``ours NAME@SHA``, since other weights are another guess; None where there is no such model."""
    try:
        predictor, path = as_predictor(model), find_model(model or DEFAULT_MODEL)
    except CheckpointError:
        return None
    return f"ours {getattr(predictor, 'name', '')}@{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


# ------------------------------------------------------------------------------------------------------------- runs


def run_guess(case: Case, guess: str, predictor: Any = None, check: bool = True) -> tuple[Row, Any]:
    """Numbers of an SCF from a guess, and its mean-field object.

    Args:
        case: what to run.
        guess: its name; one of PySCF's where there is no ``predictor``.
        predictor: of the density to start from.
        check: compare it with the stock guess first.
    """
    if predictor is None and guess not in STOCK:
        raise ValueError(f"{guess!r} needs a predictor; PySCF's guesses are {', '.join(STOCK)}")
    mol = make_mol(case.molecule.structure(), case.basis)
    calls: list[int] = []

    def solve() -> Any:
        nonlocal calls
        mf = make_mean_field(mol, case.xc, case.fit)
        if predictor is None:
            mf.init_guess = guess
        else:
            mf = warm_start(mf, predictor, check=check)
        calls = count_calls(mf, "get_veff")
        mf.kernel()
        return mf

    mf, spent = timed(solve)
    numbers = {"cycles": int(mf.cycles), "builds": calls[0], "energy": float(mf.e_tot), "converged": bool(mf.converged)}
    if predictor is not None:
        report = mf.warm_start_report
        names = ("inference_seconds", "guess_seconds", "check_seconds", "electrons", "fallback", "start")
        numbers |= {name: getattr(report, name) for name in names}
        numbers |= {"estimate": report.error, "stock_estimate": report.stock_error}
        numbers["builds"] += int(report.guess_seconds > 0)  # the Fock matrix inside the guess
    return {**spent, **numbers, "nao": mol.nao}, mf


def oracle_of(case: Case, dm: np.ndarray | None) -> ExactPredictor:
    """The exact fit of the converged density matrix ``dm``; the multilevel solver converges one where it is None."""
    mol = make_mol(case.molecule.structure(), case.basis)
    if dm is None:
        mf = accelerate(make_mean_field(mol, case.xc, case.fit))
        mf.kernel()
        if not mf.converged:
            raise RuntimeError("no converged density to fit")
        dm = mf.make_rdm1()
    predictor = ExactPredictor(_another_geometry)
    predictor.remember(mol, np.asarray(dm))
    return predictor


def _another_geometry(mol: Any) -> Any:
    raise RuntimeError("the oracle knows the density of another geometry")


def measure(case: Case, number: int, guesses: Sequence[str], model: Model | None, check: bool = True) -> Row:
    """All guesses for one case; the order is turned round in every second one, the oracle is last.

    ``check``: whether ours is compared with the stock guess first; the oracle never is.
    A guess that raises is noted in its arm, and for the row; ``minao`` ends the row if it raises.
    """
    order = [name for name in guesses if name != "oracle"][:: 1 if number % 2 == 0 else -1]
    arms: dict[str, Row] = {}
    failed: Row = {}
    converged: np.ndarray | None = None
    for name in [*order, *(name for name in guesses if name == "oracle")]:
        label, predictor = (model.label, model.predictor) if name == "ours" and model is not None else (name, None)
        try:
            if name == "oracle":
                predictor = oracle_of(case, converged)
            arms[label], mf = run_guess(case, name, predictor, check=check and name != "oracle")
        except Exception as error:
            if name == "minao":
                raise ArmError(name, error) from error
            arms[label] = {"error": error_text(error)}
            failed = {"error": f"{label}: {error_text(error)}", "arm": label}
        else:
            converged = np.asarray(mf.make_rdm1()) if name == "minao" and mf.converged else converged
            del mf
        gc.collect()
    said = ", ".join(f"{label} {arm.get('cycles', 'failed')}" for label, arm in arms.items())
    loading = {} if model is None else {"load_seconds": round(model.load_seconds, 2)}
    return {"arms": arms, "first": (order or guesses)[0], **loading, **failed, "say": f"cycles: {said}"}


# ------------------------------------------------------------------------------------------------------------- jobs


def make_cases(molecules: Sequence[GuessMolecule], arguments: argparse.Namespace) -> list[GuessCase]:
    """What to run, in its order: the next case is the cheapest one left of the category that has used the least time so far."""
    queues: list[list[GuessCase]] = []
    for label in arguments.categories:
        groups, xc, basis, transfer = CATEGORIES[label]
        chosen = [m for m in molecules if m.group in groups and (m.transfer or not transfer)]
        for fit in {"yes": (True,), "no": (False,), "both": (True, False)}["yes" if transfer else arguments.fit]:
            cases = [GuessCase(molecule, xc, basis, fit, label) for molecule in chosen]
            cases = [case for case in cases if fit or case.molecule.functions(basis) <= arguments.max_nao_direct]
            queues.append(sorted(cases, key=GuessCase.estimate))
    return shared_order(queues)


def shared_order(queues: Sequence[Sequence[GuessCase]]) -> list[GuessCase]:
    """The queues merged so that each gets the same share of the time."""
    left, used = [list(queue) for queue in queues], [0.0] * len(queues)
    out = []
    while any(left):
        index = min((index for index, queue in enumerate(left) if queue), key=lambda index: used[index])
        out.append(left[index].pop(0))
        used[index] += out[-1].estimate()
    return out


def make_jobs(cases: Sequence[GuessCase], guesses: Sequence[str], model: Model | None, store: Store, retry: bool) -> list[Job]:
    """One job a case, with the guesses that no row of it has; ``minao`` is in every one."""
    labels = {name: model.label if name == "ours" and model is not None else name for name in guesses}
    held: dict[str, dict[str, str]] = {}
    for row in store.rows:
        arms = {label: row["key"] for label, arm in row.get("arms", {}).items() if not (retry and "error" in arm)}
        held.setdefault(row.get("case", ""), {}).update(arms)
    jobs = []
    for number, case in enumerate(cases):
        known = held.get(case.key, {})
        missing = [name for name, label in labels.items() if label not in known and name != "minao"]
        if missing or "minao" not in known:
            key = f"{case.key}|{'+'.join(labels[name] for name in missing) or 'minao'}"
        else:
            key = known[labels[guesses[-1]]]  # done: the job stands for the row that is there
        run: Callable[[], Row] = partial(measure, case, number, ["minao", *missing], model)
        jobs.append(Job(key, case.seconds(1 + len(missing)), run, case.about()))
    return jobs


def warm_up(guesses: Sequence[str], model: Model | None) -> None:
    """Imports, shared libraries and their first use, on water; not counted."""
    water = Molecule("O", "water", True, "")
    for fit in (True, False):
        measure(Case(water, "pbe", "def2-svp", fit), 0, guesses, model)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="time budget; rows that are left over are measured by the next call")
    parser.add_argument("--rows", type=int, help="measure at most this many rows")
    parser.add_argument("--table", action="store_true", help="measure nothing, write table and plots")
    parser.add_argument("--retry-failed", action="store_true", help="measure again what ended in an error")
    parser.add_argument("--list", action="store_true", help="print the rows in their order with estimates, and stop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--names", nargs="+", help="only these molecules (name or SMILES)")
    parser.add_argument("--guesses", nargs="+", default=list(GUESSES), choices=GUESSES, help="minao is always one of them")
    parser.add_argument("--model", help="path, run folder or name of a density model; default: the one that the package ships")
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES), choices=CATEGORIES, help="default: all")
    parser.add_argument("--fit", choices=("yes", "no", "both"), default="yes", help="density fitting in small and large")
    parser.add_argument("--max-nao-direct", type=int, default=450, help="no rows without density fitting above this size")
    parser.add_argument(
        "--learning-curve", nargs="*", metavar="NAME:PATH", help="models, or folders of runs, for RIC against frames"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the rows, table and plots")
    arguments = parser.parse_args(words)
    arguments.guesses = [name for name in GUESSES if name in {*arguments.guesses, "minao"}]
    return arguments


def chosen_molecules(arguments: argparse.Namespace) -> list[GuessMolecule]:
    """The molecules that were not trained on and that the command line names; exits for a name that is none of them."""
    molecules = guess_molecules()
    wanted = set(arguments.names or ())
    unknown = wanted - {word for molecule in molecules for word in (molecule.name, molecule.smiles)}
    if unknown:
        sys.exit(f"--names: no molecule {', '.join(sorted(unknown))} in guess_small.smi or guess_large.smi that was not trained on")
    return [m for m in molecules if not wanted or m.name in wanted or m.smiles in wanted]


def set_torch_threads(threads: int) -> None:
    """For the network, as :func:`_scfruns.set_threads` does for PySCF and BLAS."""
    import torch

    torch.set_num_threads(threads)


def main() -> None:
    arguments = parse()
    if arguments.learning_curve is not None:
        from _guesscurve import run_curve

        run_curve(arguments)
        return
    store = Store(arguments.output / "scf_guess.jsonl")
    cases = make_cases(chosen_molecules(arguments), arguments)
    if not arguments.table:
        model = find(arguments.model) if "ours" in arguments.guesses else None
        set_torch_threads(arguments.threads)
        jobs = make_jobs(cases, arguments.guesses, model, store, arguments.retry_failed)
        if not run_jobs(jobs, store, arguments, partial(warm_up, arguments.guesses, model)):
            return
    from scf_guess_plots import category, write_results

    write_results(store, arguments.output, Counter(category(case.about()) for case in cases), label_of(arguments.model))


if __name__ == "__main__":
    main()
