"""A file of JSON lines that another writes, read as it grows."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any


class Tail:
    """What is new in the file at each look; one that has shrunk, as a resumed run's does, is read from its start."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The records since the last look, and whether they are from the start of the file."""
        begins = self.position == 0
        try:
            if self.path.stat().st_size < self.position:
                self.position, begins = 0, True
            with self.path.open("rb") as file:
                file.seek(self.position)
                text = file.read()
        except OSError:
            return [], False  # not there yet, or gone
        whole = text[: text.rfind(b"\n") + 1]  # the rest of a line comes later
        self.position += len(whole)
        records = []
        for line in whole.splitlines():
            with suppress(ValueError):  # a bad line is for the reader of the run to report
                records.append(json.loads(line))
        return [record for record in records if isinstance(record, dict)], begins
