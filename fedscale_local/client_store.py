"""What clients keep from round to round, in memory or on disk.

On disk, one file a client (safetensors, no pickle) holds what the client kept; it is read when the client is asked and
written when it has answered, so memory holds the states of a round's clients only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path

from flwr.app import RecordDict
from safetensors import safe_open
from safetensors.torch import save

from fedscale_local import checkpoint, disk, wire


class OnDisk(MutableMapping[int, RecordDict]):
    """States by client's node id, each in a file of `folder`; an empty state has no file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.safetensors"):
            left.unlink()  # of a run that was killed: its checkpoint says what counts

    def _file(self, node: int) -> Path:
        return self.folder / f"{node}.safetensors"

    def __getitem__(self, node: int) -> RecordDict:
        if not self._file(node).exists():
            raise KeyError(node)
        with safe_open(self._file(node), framework="pt") as file:
            leaves = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            tree = json.loads(file.metadata()["state"])
        return wire.load_records(checkpoint.decode(tree, leaves))

    def __setitem__(self, node: int, state: RecordDict) -> None:
        if state:
            tree, tensors = checkpoint.encode(wire.dump_records(state))
            disk.write(self._file(node), save(tensors, {"state": json.dumps(tree)}))
        else:
            self._file(node).unlink(missing_ok=True)

    def __delitem__(self, node: int) -> None:
        self._file(node).unlink()

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(int(path.stem) for path in self.folder.glob("*.safetensors")))

    def __len__(self) -> int:
        return len(list(iter(self)))
