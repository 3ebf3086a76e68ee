"""The fenced blocks of the README and of docs/how-to, with what replaces their files and sizes in a test."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]


def blocks(language: str, pages: list[Path] | None = None) -> list[str]:
    """Every block of one language, each once, in the order of the pages."""
    texts = [page.read_text(encoding="utf-8") for page in pages or PAGES]
    found = [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)]
    return list(dict.fromkeys(found))


def commands(pages: list[Path] | None = None) -> list[str]:
    """Lines of the shell blocks that call a program of this package, without their remarks."""
    lines = [line.partition(" #")[0].strip() for block in blocks("sh", pages) for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(("mlip ", "scf-accel "))))


def replaced(text: str, changes: dict[str, str]) -> str:
    """``text`` with every key of ``changes`` that occurs in it replaced."""
    for old, new in changes.items():
        text = text.replace(old, new)
    return text
