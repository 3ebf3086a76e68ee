"""Pages that mkdocs makes from code: the command lines from their typer apps, Python from its docstrings, benchmark results."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MODULES = {
    "mlip": (
        "calculator", "checkpoint", "models/assembly", "models/uncertainty", "training/uncertainty", "dynamics/relax",
        "dynamics/hessian", "dynamics/settings", "dynamics/md", "data/readers", "data/hdf5", "data/convert", "data/audit",
        "data/frame", "data/units", "data/schema", "data/density", "config", "initfrom", "training/run", "errors",
    ),
    "scf_accel": (
        "multilevel/plugin", "multilevel/report", "warmstart/plugin", "warmstart/functions", "warmstart/report", "predictor",
        "gradient/plugin", "fitting", "auxbasis", "labels", "labelstore", "structures", "runinput",
    ),
}  # fmt: skip
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages (a hook of mkdocs)."""
    from mkdocs.structure.files import File

    pages = {"benchmarks.md": benchmarks_page()}
    for program in ("mlip", "scf-accel"):
        pages[f"reference/{program}-command.md"] = command_page(program)
    for package in MODULES:
        pages[f"reference/{package}.md"] = python_page(package)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for image in sorted(RESULTS.rglob("*.png")):
        files.append(File.generated(config, flat(image), abs_src_path=str(image)))
    return files


def benchmarks_page() -> str:
    """The tables of benchmarks/results, one after the other, headings one level down."""
    parts = ["# Benchmarks", "Each table is printed by the script of the same name in `benchmarks/`; it says how it was measured."]
    for path in sorted(RESULTS.rglob("*.md")):
        text = re.sub(r"^#", "##", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        text = re.sub(r"\]\(([\w-]+\.png)\)", lambda found, path=path: f"]({flat(path.with_name(found[1]))})", text)
        parts.append(text if text.startswith("## ") else f"## {path.stem}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def flat(path: Path) -> str:
    """The name of a result on the page: that of its folder in front, where it lies in one."""
    return "-".join(path.relative_to(RESULTS).parts)


# ------------------------------------------------------------------------------------------------ command line


def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command without subcommands, with its words."""
    children = getattr(command, "commands", None)
    if not children:
        yield words, command
    for name, child in (children or {}).items():
        yield from leaves(child, (*words, name))


def command_page(program: str) -> str:
    """Arguments, options and example of every command of ``mlip`` or ``scf-accel``."""
    from typer.main import get_command

    if program == "mlip":
        from mlip.cli import app
    else:
        from scf_accel.cli import app
    parts = [f"# The command `{program}`"]
    for words, command in leaves(get_command(app), (program,)):
        text, _, example = (command.help or "").partition("Example:")
        parts += [f"## {' '.join(words)}", text.strip(), f"```sh\n{example.strip()}\n```"]
        rows = ["| | | default |", "|---|---|---|"]
        for parameter in command.params:
            option = parameter.param_type_name == "option"
            name = ", ".join(parameter.opts + parameter.secondary_opts) if option else parameter.name.upper()
            default = "" if parameter.default in (None, False, "") or callable(parameter.default) else f"`{parameter.default}`"
            help_text = (getattr(parameter, "help", None) or "").replace("|", "\\|").replace("<", "&lt;")
            rows.append(f"| `{name}` | {help_text} | {'required' if parameter.required else default} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------------------ Python


def python_page(package: str) -> str:
    """Public classes and functions of the modules that users meet, with signature and docstring; nothing is imported."""
    parts = [f"# The package `{package}`"]
    for name in MODULES[package]:
        tree = ast.parse((ROOT / package / f"{name}.py").read_text(encoding="utf-8"))
        entries = [text for node in tree.body for text in described(node)]
        parts += [f"## {package}.{name.replace('/', '.')}", prose(ast.get_docstring(tree) or ""), *entries]
    return "\n\n".join(parts) + "\n"


def described(node: ast.stmt) -> Iterator[str]:
    """Signature and docstring of a public class (with its public methods) or function."""
    if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
        return
    text = ast.get_docstring(node)
    if text:
        yield f"```python\n{signature(node)}\n```\n\n{prose(text)}"
    for child in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(child, ast.FunctionDef):
            yield from (entry.replace("```python\ndef ", f"```python\n{node.name}.", 1) for entry in described(child))


def signature(node: ast.ClassDef | ast.FunctionDef) -> str:
    """As in the source; of a class also how it is made."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        first = f"class {node.name}" + (f"({bases})" if bases else "")
        made = next((child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"), None)
        return first if made is None else f"{first}\n\n{node.name}({ast.unparse(made.args).removeprefix('self').lstrip(', ')})"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){returns}"


def prose(text: str) -> str:
    """A docstring as Markdown: references as code, the entries of its sections as lists."""
    text = re.sub(r":\w+:`[~.]?([^`]+)`", r"`\1`", text).replace("<", "&lt;")
    lines, inside = [], False
    for line in text.splitlines():
        title = line.rstrip(":")
        if title in SECTIONS and line.endswith(":"):
            lines += ["", f"**{title}**", ""]
            inside = True
        elif inside and re.match(r"    \S", line):
            lines.append(f"- {line.strip()}")
        elif inside and line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            inside = inside and not line.strip()
            lines.append(line)
    return "\n".join(lines)
