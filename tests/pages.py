"""README.md and docs/ as the tests read them: pages, their fenced blocks, and the commands in those."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent
PAGES = {"README.md": REPO / "README.md"}
PAGES |= {path.relative_to(REPO).as_posix(): path for path in sorted(REPO.glob("docs/*.md"))}
SETTING_UP = ("make ", "pip ", "source ")


class Block(NamedTuple):
    """One fenced block: its language, its text, and the file that it becomes."""

    language: str
    text: str
    saved_as: str | None


_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SAVE = re.compile(r"[Ss]ave this as\s+`([^`]+)`:\s*$")


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        named = _SAVE.search(text[: match.start()])
        found.append(Block(match[1], match[2], named and named[1]))
    return found


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(block: Block) -> list[str]:
    """The commands of a bash or console block, continued lines joined."""
    if block.language == "bash":
        return [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]
    return [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]


ALL_COMMANDS = [
    (name, command)
    for name, page in PAGES.items()
    for block in blocks(page)
    if block.language in ("bash", "console")
    for command in commands(block)
]
