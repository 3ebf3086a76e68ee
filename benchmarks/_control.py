"""Control of benchmarks/scf_wall.py: what the multilevel scheme itself adds to its integral storage and grid kernels.

Each arm adds one thing to the one before: stock PySCF; the fitted integrals made once (`with_df.build()`, only with density
fitting); orbital values kept on the grid (`scf_accel.storednumint.StoredNumInt`, the same kernels as in the multilevel
solver's own model, here in DIIS with the full grid); the multilevel solver, whose full Fock matrices are stock PySCF's.
Which arm goes first changes from row to row. Everything is in the times.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import header, table
from _scfruns import Job, Store, in_arm
from scf_wall import Case, named_jobs, run_ours, run_stock
from scf_wall_plots import integrals, measured_line

from mlip.files import atomic_write_text
from scf_accel.storednumint import StoredNumInt

NAMES = ("uracil", "nitroaniline", "caffeine", "nicotine")  # two sizes: 12 and 16, 24 and 26 atoms
ARMS = ("stock", "integrals kept", "integrals and orbital values kept", "ours")


def keep_integrals(mf: Any) -> None:
    """The fitted integrals once and for all, where there are any."""
    if getattr(mf, "with_df", None) is not None:
        mf.with_df.build()


def keep_all(mf: Any) -> None:
    """The fitted integrals and the orbital values on the grid."""
    keep_integrals(mf)
    mf._numint = StoredNumInt()


def arms(case: Case) -> dict[str, Callable[[], dict[str, Any]]]:
    """The runs of a case; without density fitting there are no integrals to keep."""
    out = {
        ARMS[0]: lambda: run_stock(case)[0],
        ARMS[1]: lambda: run_stock(case, prepare=keep_integrals)[0],
        ARMS[2]: lambda: run_stock(case, prepare=keep_all)[0],
        ARMS[3]: lambda: run_ours(case),
    }
    return out if case.fit else {name: run for name, run in out.items() if name != ARMS[1]}


def measure_arms(case: Case, number: int) -> dict[str, Any]:
    """All arms on one case, each from new objects; ``number`` says which goes first."""
    runs = arms(case)
    order = list(runs)
    order = order[number % len(order) :] + order[: number % len(order)]
    done = {}
    for name in order:
        done[name] = in_arm(name, runs[name])
        gc.collect()
    say = ", ".join(f"{name} {done[name]['seconds']:.1f} s" for name in runs)
    return {"arms": {name: done[name] for name in runs}, "order": order, "stock": done[ARMS[0]], "say": say}


def control_jobs(arguments: argparse.Namespace) -> list[Job]:
    """One job a molecule and functional."""
    return named_jobs(arguments, "control", NAMES, 1.3, measure_arms)


COLUMNS = [
    *("molecule", "atoms", "nao", "xc", "basis", "J, K", "arm", "seconds", "CPU s", "full builds", "peak MB"),
    *("stock / arm", "arm / ours", "dE to stock, Eh", "converged"),
]


def arm_line(row: dict[str, Any], name: str) -> list[str]:
    """A line an arm."""
    run, stock, ours = row["arms"][name], row["arms"][ARMS[0]], row["arms"][ARMS[3]]
    builds = run["builds"] if "builds" in run else run["fine"]
    peak = "-" if run["peak_mb"] is None else str(run["peak_mb"])
    return [
        *(row["name"], str(row["atoms"]), str(row["nao"]), row["xc"].upper(), row["basis"], integrals(row), name),
        *(f"{run['seconds']:.2f}", f"{run['cpu']:.2f}", str(builds), peak, f"{stock['seconds'] / run['seconds']:.2f}"),
        *(f"{run['seconds'] / ours['seconds']:.2f}", f"{run['energy'] - stock['energy']:+.1e}"),
        "yes" if run["converged"] else "**no**",
    ]


def median_lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A line an arm and functional: the medians of the two ratios, over rows where every arm converged."""
    good = [row for row in rows if all(run["converged"] for run in row["arms"].values())]
    lines = []
    for xc, fit in sorted({(row["xc"], row["df"]) for row in good}, reverse=True):
        group = [row for row in good if (row["xc"], row["df"]) == (xc, fit)]
        for name in ARMS:
            members = [row["arms"] for row in group if name in row["arms"]]
            if members:
                gain = np.median([run[ARMS[0]]["seconds"] / run[name]["seconds"] for run in members])
                left = np.median([run[name]["seconds"] / run[ARMS[3]]["seconds"] for run in members])
                lines.append([xc.upper(), "yes" if fit else "no", name, str(len(members)), f"{gain:.2f}", f"{left:.2f}"])
    return lines


def write_control(store: Store, output: Path) -> None:
    """Write and print ``scf_control.md``."""
    rows = [row for row in store.rows if "error" not in row]
    if not rows:
        print(f"{store.path}: no finished row, so no table")
        return
    failed = [row for row in store.rows if "error" in row]
    text = header("What the multilevel scheme itself adds", packages=("pyscf", "numpy"))
    text += measured_line(rows) + f"- {len(rows)} rows, {len(failed)} failed\n\n" + (__doc__ or "").split("\n\n", 1)[1] + "\n"
    text += table(["xc", "DF", "arm", "rows", "stock / arm, median", "arm / ours, median"], median_lines(rows)) + "\n"
    ordered = sorted(rows, key=lambda row: (row["atoms"], row["name"], row["xc"], not row["df"]))
    text += table(COLUMNS, [arm_line(row, name) for row in ordered for name in ARMS if name in row["arms"]])
    text += "".join(f"\nfailed: `{row['key']}`: {row['error']}\n" for row in failed)
    atomic_write_text(output / "scf_control.md", text)
    print(text)
    print(f"written: {output / 'scf_control.md'}")
