"""Audit reports and statistics as rich tables, and as plain text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ase.data import chemical_symbols
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from mlip.data.audit import AuditReport
    from mlip.data.stats import DataStatistics


def to_text(renderable: Any, width: int = 110) -> str:
    """What rich shows, as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]


def _elements(elements: dict[int, int]) -> str:
    return "  ".join(f"{chemical_symbols[number]} {count}" for number, count in elements.items())


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.2f}"


def _range_table(ranges: dict[str, tuple[float, float, float, str]]) -> Table:
    table = Table("quantity", "unit", "lowest", "median", "highest", box=None, pad_edge=False)
    for name, (low, median, high, unit) in ranges.items():
        table.add_row(name, unit, _number(low), _number(median), _number(high))
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def audit_display(report: AuditReport) -> Group:
    """The audit: counts, ranges, tests, warnings, refusals."""
    labels = Table("label", "frames", "missing", "NaN", "infinite", box=None, pad_edge=False)
    for name, count in report.labels.items():
        missing = report.frames - count.present
        labels.add_row(name, str(count.present), str(missing), str(count.nan), str(count.infinite))
    parts: list[Any] = [
        f"[bold]{report.frames} frames, {report.atoms} atoms[/bold]   {_elements(report.elements)}",
        "", labels, "", _range_table(report.ranges), "",
        f"duplicates: {report.duplicates}   E0 rank: {report.e0_rank} of {len(report.elements)} elements",
    ]  # fmt: skip
    for finding in report.findings:
        verdict = "not decided" if not finding.conclusive else ("passed" if finding.passed else "[red]failed[/red]")
        parts.append(f"test of {finding.label}: {verdict}: {escape(finding.text)}")
    parts += [f"[yellow]warning[/yellow] {escape(text)}" for text in report.warnings]
    parts += [f"[red]refused[/red] {escape(text)}" for text in report.refusals]
    return Group(*parts)


def stats_display(stats: DataStatistics) -> Group:
    """The statistics: counts, sizes, neighbours, histograms, attributes."""
    parts: list[Any] = [
        f"[bold]{stats.frames} frames, {stats.atoms} atoms[/bold]   {_elements(stats.elements)}",
        f"labels: {', '.join(f'{name} {count}' for name, count in stats.labels.items() if count) or 'none'}"
        f"   periodic frames: {stats.periodic}",
        "", _range_table(stats.ranges), "",
        f"neighbours within {stats.cutoff:g} A: {stats.avg_num_neighbors:.2f} on average",
    ]  # fmt: skip
    for name, (counts, edges) in stats.histograms.items():
        parts += ["", f"[bold]{name}[/bold]", _histogram(counts, edges)]
    if stats.attrs:
        parts += ["", "[bold]attributes[/bold]"]
        parts += [f"{escape(str(name))}: {escape(str(value))}" for name, value in stats.attrs.items()]
    return Group(*parts)


def _histogram(counts: list[int], edges: list[float]) -> Table:
    table = Table("from", "to", "count", "", box=None, pad_edge=False)
    most = max(counts, default=0) or 1
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        table.add_row(_number(low), _number(high), str(count), "#" * round(30 * count / most))
    for column in table.columns[:3]:
        column.justify = "right"
    return table
