"""Hard SCF cases: how often and at what cost four solvers converge, and whether to the lowest energy.

    python benchmarks/scf_hard.py --minutes 60       # measure (goes on where it stopped); then write the table
    python benchmarks/scf_hard.py --table            # only the table of what is measured

Radicals, stretched bonds, transition-metal complexes and small-gap molecules (benchmarks/_hardcases.py), PBE and B3LYP,
def2-SVP, density fitting, UKS for open shells, PySCF's guess and thresholds, at most 50 cycles. Solvers: stock PySCF; stock
with level shift 0.3 and damping 0.5 (the first six cycles damped, then DIIS); ``.newton()``; ours.

Fock: evaluations of the Fock matrix. J/K: evaluations of Coulomb (and exchange) matrices with the full fitting basis, those
of Newton's response included. Lowest: converged, and the energy within 1e-6 Eh of the lowest that any solver found (of runs
that did not converge as well: their energies are upper bounds of the minimum). PySCF ends with one cycle without level
shift; a run that does not hold there counts as not converged.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from _hardcases import HardCase, hard_cases
from _scfruns import RESULTS, Job, Store, count_calls, make_mean_field, make_mol, run_jobs, timed
from scf_wall import XCS
from scf_wall_plots import measured_line

from mlip.files import atomic_write_text
from scf_accel.multilevel import accelerate

BASIS = "def2-svp"
MAX_CYCLE = 50
SAME = 1e-6  # Hartree
Row = dict[str, Any]
# Stands in for the numbers of a run that raised an error
FAILED: Row = {"converged": False, "energy": float("nan"), "fock": 0, "jk": 0, "seconds": 0.0, "cpu": 0.0, "s2": 0.0, "ours": {}}


def shifted(mf: Any) -> Any:
    """Level shift, and damping before DIIS starts (PySCF's ``damp`` does nothing unless DIIS starts late)."""
    mf.level_shift, mf.damp, mf.diis_start_cycle = 0.3, 0.5, 7
    return mf


SOLVERS: dict[str, Callable[[Any], Any]] = {
    "stock": lambda mf: mf,
    "shift + damp": shifted,
    "newton": lambda mf: mf.newton(),
    "ours": lambda mf: accelerate(mf),
}


def measure(case: HardCase, xc: str, solver: str) -> Row:
    """One solver on one case."""
    mol = make_mol(case.structure, BASIS)
    counters: dict[str, list[int]] = {}

    def solve() -> Any:
        mf = make_mean_field(mol, xc, True)
        mf.max_cycle = MAX_CYCLE
        counters["jk"] = count_calls(mf.with_df, "get_jk")
        if solver == "newton":  # it calls the Fock matrix of the object that it was made from
            counters["fock"] = count_calls(mf, "get_veff")
        mf = SOLVERS[solver](mf)
        if solver != "newton":
            counters["fock"] = count_calls(mf, "get_veff")
        mf.kernel()
        return mf

    mf, spent = timed(solve)
    fock, jk = counters["fock"][0], counters["jk"][0]
    report = getattr(mf, "multilevel_report", None)
    ours = {} if report is None else {"coarse": report.coarse_builds, "fallback": report.fallback}
    said = f"{'converged' if mf.converged else 'NOT converged'}, E {mf.e_tot:.8f}, {fock} Fock, {jk} J/K"
    return {
        **{"nao": mol.nao, "converged": bool(mf.converged), "energy": float(mf.e_tot), **spent},
        **{"fock": fock, "jk": jk, "ours": ours, "say": f"{said}, {spent['seconds']:.1f} s"},
        "s2": float(mf.spin_square()[0]) if mol.spin else 0.0,
    }


def about(case: HardCase, xc: str, solver: str) -> Row:
    """What a row says of its case."""
    structure = case.structure
    return {
        **{"name": case.name, "group": case.group, "xc": xc, "solver": solver, "basis": BASIS},
        **{"atoms": len(structure.numbers), "charge": structure.charge, "spin": structure.spin},
    }


def make_jobs(xcs: Sequence[str], names: Sequence[str] | None) -> list[Job]:
    """The solvers of a case together, cheap cases first, every group early (the group with the least estimated time next).

    Which solver goes first changes from one case and functional to the next.
    """
    queues: dict[str, list[tuple[float, HardCase]]] = {}
    for case in hard_cases():
        if not names or case.name in names:
            queues.setdefault(case.group, []).append((estimate(case), case))
    for queue in queues.values():
        queue.sort(key=lambda item: item[0])
    used = dict.fromkeys(queues, 0.0)
    jobs: list[Job] = []
    solvers = list(SOLVERS)
    while any(queues.values()):
        group = min((name for name, queue in queues.items() if queue), key=lambda name: used[name])
        seconds, case = queues[group].pop(0)
        used[group] += seconds
        for xc in xcs:
            for solver in solvers:
                share = {"newton": 3.0, "ours": 0.5}.get(solver, 1.0)
                run = partial(run_and_free, case, xc, solver)
                jobs.append(Job(f"{case.name}|{xc}|{solver}", share * seconds, run, about(case, xc, solver)))
            solvers = [*solvers[1:], solvers[0]]
    return jobs


def run_and_free(case: HardCase, xc: str, solver: str) -> Row:
    """:func:`measure`, and leave no large arrays behind."""
    row = measure(case, xc, solver)
    gc.collect()
    return row


def warm_up() -> None:
    """Shared libraries and their first use, on small cases; not counted."""
    for case in hard_cases():
        if case.name in ("OH", "HF at 2.5 re"):
            for xc in XCS:
                measure(case, xc, "ours")


def estimate(case: HardCase) -> float:
    """Seconds of a stock run, roughly."""
    light = int(np.sum(case.structure.numbers == 1))
    heavy = len(case.structure.numbers) - light
    return 0.5 + (0.02 if case.structure.spin else 0.01) * (heavy + light) * (14 * heavy + 5 * light)


# ------------------------------------------------------------------------------------------------------------- table


def by_case(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[str, Row]]:
    """``(group, name, xc) -> solver -> row``; rows that raised count as not converged."""
    out: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        out.setdefault((row["group"], row["name"], row["xc"]), {})[row["solver"]] = {**FAILED, **row}
    return out


def lowest_energy(runs: dict[str, Row]) -> float:
    """Lowest energy, Hartree, of all solvers: that of a run which did not converge bounds the minimum from above, too.

    NaN where no run has an energy.
    """
    return min((row["energy"] for row in runs.values() if np.isfinite(row["energy"])), default=float("nan"))


def reached(row: Row, runs: dict[str, Row]) -> bool:
    """Whether a solver converged to the lowest energy that was found."""
    return bool(row["converged"] and row["energy"] <= lowest_energy(runs) + SAME)


def same_state(row: Row, stock: Row) -> bool:
    """Whether both runs converged, and to the same energy: only then their costs compare."""
    return bool(row["converged"] and stock["converged"] and abs(row["energy"] - stock["energy"]) <= SAME)


def summary(cases: Sequence[dict[str, Row]]) -> list[list[str]]:
    """A line a solver over the cases that all solvers have run. Cost ratios where it and stock found the same energy."""
    lines = []
    for solver in SOLVERS:
        rows = [(runs[solver], runs) for runs in cases]
        both = [(row, runs["stock"]) for row, runs in rows if same_state(row, runs["stock"])]
        cost = {name: [row[name] / stock[name] for row, stock in both] for name in ("fock", "jk", "seconds", "cpu")}
        count = len(rows)
        converged, lowest = sum(row["converged"] for row, _ in rows), sum(reached(row, runs) for row, runs in rows)
        handed = sum(bool(row["ours"].get("fallback")) for row, _ in rows)
        ratios = [f"{np.median(values):.2f}" if values else "-" for values in cost.values()]
        lines.append(
            [
                *(solver, str(count), f"{converged} ({converged / count:.0%})", f"{lowest} ({lowest / count:.0%})", *ratios),
                *(str(len(both)), f"{sum(row['seconds'] for row, _ in rows):.0f}", str(handed) if solver == "ours" else "-"),
                str(sum("error" in row for row, _ in rows)),
            ]
        )
    return lines


def case_lines(cases: dict[tuple[str, str, str], dict[str, Row]]) -> list[list[str]]:
    """A line a case and solver."""
    lines = []
    for (_, name, xc), runs in cases.items():
        lowest = lowest_energy(runs)
        for solver in SOLVERS:
            if solver not in runs:
                continue
            row = runs[solver]
            above = row["energy"] - lowest
            energy = "lowest" if above <= SAME else f"{above:+.2e}"
            note = row.get("error") or row["ours"].get("fallback") or ""
            lines.append(
                [
                    *(name, xc.upper(), solver, "yes" if row["converged"] else "**no**", f"{row['energy']:.8f}", energy),
                    *(str(row["fock"]), str(row["jk"]), f"{row['seconds']:.1f}", f"{row['s2']:.3f}", note),
                ]
            )
    return lines


SUMMARY = [
    *("solver", "n", "converged", "lowest energy", "Fock / stock", "J/K / stock", "wall / stock", "CPU / stock"),
    *("cost ratios from", "sum of seconds", "handed to stock", "failed"),
]
CASES = ["molecule", "xc", "solver", "converged", "E, Eh", "above lowest, Eh", "Fock", "J/K", "s", "<S^2>", "note"]


def write_results(store: Store, output: Path) -> None:
    """Write ``scf_hard.md``; print the summary."""
    cases = by_case(store.rows)
    complete = {key: runs for key, runs in cases.items() if set(runs) == set(SOLVERS)}
    if not complete:
        print(f"{store.path}: no case that all solvers have run, so no table")
        return
    text = header("Hard SCF cases", packages=("pyscf", "numpy"))
    text += measured_line(store.rows)
    failed = [row for row in store.rows if "error" in row]
    text += f"- {len(complete)} cases that all solvers have run, {len(failed)} failed\n\n" + (__doc__ or "").split("\n\n", 2)[2]
    text += "\nCost ratios are medians over the cases where the solver and stock PySCF converged to the same energy (1e-6 Eh).\n"
    groups = sorted({key[0] for key in complete})
    for group in ("all", *groups):
        members = [runs for key, runs in complete.items() if group in ("all", key[0])]
        text += f"\n### {group}\n\n" + table(SUMMARY, summary(members))
    short = text
    for group in groups:
        members = {key: runs for key, runs in sorted(cases.items()) if key[0] == group}
        text += f"\n### {group}, case by case\n\n" + table(CASES, case_lines(members))
    if failed:
        text += "\n### Runs that raised an error\n\n" + table(["run", "error"], [[row["key"], row["error"]] for row in failed])
    atomic_write_text(output / "scf_hard.md", text)
    print(short)
    print(f"written: {output / 'scf_hard.md'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="time budget; what is left over is measured by the next call")
    parser.add_argument("--rows", type=int, help="make at most this many runs")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table")
    parser.add_argument("--retry-failed", action="store_true", help="make runs again that ended in an error")
    parser.add_argument("--list", action="store_true", help="print the runs in their order with estimates, and stop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--names", nargs="+", help="only these cases")
    parser.add_argument("--xc", nargs="+", default=list(XCS), choices=XCS)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the rows and the table")
    arguments = parser.parse_args()
    store = Store(arguments.output / "scf_hard.jsonl")
    if arguments.table or run_jobs(make_jobs(arguments.xc, arguments.names), store, arguments, warm_up):
        write_results(store, arguments.output)


if __name__ == "__main__":
    main()
