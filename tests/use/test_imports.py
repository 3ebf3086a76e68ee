"""Imports point one way: cli -> dynamics, calculator, training -> models -> nn, data beside them, scf_accel -> mlip."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TOP = ("mlip.training", "mlip.calculator", "mlip.dynamics", "mlip.cli")

# What a part must not import; a part is the longest prefix of a module's name listed here.
FORBIDDEN = {
    "mlip": ("scf_accel", "pyscf"),
    "mlip.nn": ("mlip.data", "mlip.models", "mlip.checkpoint", *TOP),
    "mlip.models": ("mlip.data", "mlip.checkpoint", *TOP),
    "mlip.data": ("mlip.nn", "mlip.models", "mlip.checkpoint", *TOP),
    "mlip.checkpoint": TOP,
    "mlip.calculator": ("mlip.training", "mlip.dynamics", "mlip.cli"),
    "mlip.dynamics": ("mlip.training", "mlip.cli"),
    "mlip.training": ("mlip.dynamics", "mlip.cli"),
    "scf_accel": ("lightning", "pytorch_lightning", "mlip.training", "mlip.cli"),
}

# The layout of density coefficients is names and numbers only, so models may use it; its metric integrals load PySCF on call.
ALLOWED = {"mlip.models": "mlip.data.density", "mlip.data.density": "pyscf"}


# torch's compiler takes longer to load than torch itself; e3nn loads it.
COMPILER = ("torch._dynamo", "torch._inductor", "sympy", "e3nn")


def module_name(path: Path, root: Path) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, name: str) -> Iterator[str]:
    """Every module that the file imports, at its top or inside a function; types-only imports too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - node.level + 1] + ([base] if base else []))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def inside(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def forbidden_arrows(root: Path) -> list[str]:
    """Every import against the directions, as "importer -> imported"."""
    found = []
    for path in sorted(p for package in ("mlip", "scf_accel") for p in (root / package).rglob("*.py")):
        name = module_name(path, root)
        banned = [ban for part, bans in FORBIDDEN.items() if inside(name, part) for ban in bans]
        allowed = [target for part, target in ALLOWED.items() if inside(name, part)]
        targets = {target for target in imported(path, name) if any(inside(target, ban) for ban in banned)}
        targets = {target for target in targets if not any(inside(target, permit) for permit in allowed)}
        found += [f"{name} -> {target}" for target in sorted(targets)]
    return found


def test_no_arrow_points_the_wrong_way():
    assert len(list((ROOT / "mlip").rglob("*.py"))) > 10
    assert forbidden_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "arrow"),
    [
        ("mlip/nn/layer.py", "from mlip.models import build", "mlip.nn.layer -> mlip.models"),
        ("mlip/data/reader.py", "def f():\n    import mlip.training.a", "mlip.data.reader -> mlip.training.a"),
        ("mlip/data/reader.py", "from ..models import build", "mlip.data.reader -> mlip.models"),
        ("mlip/models/a.py", "from mlip import calculator", "mlip.models.a -> mlip.calculator"),
        ("mlip/training/a.py", "import pyscf.gto", "mlip.training.a -> pyscf.gto"),
        ("mlip/data/graph.py", "import pyscf", "mlip.data.graph -> pyscf"),
        ("mlip/models/a.py", "from mlip.data.frame import Frame", "mlip.models.a -> mlip.data.frame"),
        ("mlip/config.py", "from scf_accel.labels import x", "mlip.config -> scf_accel.labels"),
        ("scf_accel/a.py", "import lightning", "scf_accel.a -> lightning"),
    ],
)
def test_the_walker_catches_a_forbidden_arrow(tmp_path, file, line, arrow):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert arrow in forbidden_arrows(tmp_path)


def test_the_walker_lets_the_right_way_pass(tmp_path):
    path = tmp_path / "mlip" / "training" / "a.py"
    path.parent.mkdir(parents=True)
    allowed = ("from mlip.models import build", "from mlip.data.graph import GraphDataset", "import scf.mlip.cli")
    path.write_text("\n".join(allowed))
    assert forbidden_arrows(tmp_path) == []


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mlip", ("torch", "pyscf", "ase", "lightning", "scf_accel")),
        ("import mlip; mlip.MLIPCalculator; mlip.build", ("pyscf", "lightning", "scf_accel", "torch_geometric")),
        ("import mlip.models.config, mlip.configfile, mlip.training.commands", ("torch", "lightning")),
        ("import mlip.dynamics", ("pyscf", "lightning", "scf_accel", "torch")),
        ("import mlip; mlip.load_model; mlip.MLIPCalculator", ("pyscf", "lightning", "torch_geometric", *COMPILER)),
        ("import mlip.data.density", ("torch", "pyscf", "h5py")),
        ("import scf_accel", ("lightning", "torch")),
    ],
)
def test_what_an_import_loads(statement, absent):
    code = f"import sys; {statement}; print(','.join(m for m in {absent!r} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
