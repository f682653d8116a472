"""What clients keep from round to round, in memory or on disk.

On disk, one file a client (safetensors, no pickle) holds what the client kept; it is read when the client is asked and
written when it has answered, so memory holds the states of a round's clients only. A round writes files of its own and
leaves those of earlier rounds alone: they are the checkpoints' as they are (checkpoint.py), and none is ever copied.
"""

from __future__ import annotations

import hashlib
import json
from collections import UserDict
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import RecordDict
from safetensors import safe_open
from safetensors.torch import save

from fedscale_local import checkpoint, disk, wire
from fedscale_local import flower_adapter as adapter
from fedscale_local.checkpoint import Filed


class Kept(NamedTuple):
    """What clients keep, by node id, as a checkpoint has it: in itself, or in files beside it."""

    dumped: Mapping[int, Any]
    filed: Mapping[int, Filed]


class InMemory(UserDict[int, RecordDict]):
    """States by client's node id."""

    def __init__(self) -> None:
        super().__init__()
        self.dumped: dict[int, Any] = {}
        self.changed: set[int] = set()

    def __setitem__(self, node: int, state: RecordDict) -> None:
        super().__setitem__(node, state)
        self.changed.add(node)

    def restore(self, states: Mapping[int, RecordDict]) -> None:
        """Give each client back what it kept."""
        self.update(states)

    def settle(self, round: int) -> Kept:
        """What clients keep now that this round is done; the next ones do not change it."""
        new = {node: wire.dump_records(adapter.kept(self[node])) for node in sorted(self.changed)}
        self.dumped = {node: dumped for node, dumped in (self.dumped | new).items() if dumped}
        self.changed.clear()
        return Kept(self.dumped, {})


class OnDisk(MutableMapping[int, RecordDict]):
    """States by client's node id, in files among a run's checkpoints; an empty state has none.

    What a client may not tell, the secrets of a secure sum, is in no file: it is small and stays in memory.
    """

    def __init__(self, run_dir: Path, filed: Mapping[int, Filed] | None = None) -> None:
        self.run_dir, self.folder = run_dir, run_dir / "checkpoints" / "clients"
        self.filed = dict(filed or {})
        """What clients kept after the last round that is done."""
        self.new: dict[int, str] = {}
        """The sums of what was written since, under names that do not last."""
        self.secrets: dict[int, dict[str, Any]] = {}

    def _new_file(self, node: int) -> Path:
        return self.folder / f"{node}.new"

    def _sum(self, node: int) -> str | None:
        if node in self.new:
            return self.new[node]
        return self.filed[node].sha256 if node in self.filed else None

    def __getitem__(self, node: int) -> RecordDict:
        if node not in self:
            raise KeyError(node)
        told: Mapping[str, Any] = {}
        if node in self.new:
            told = _read(self._new_file(node))
        elif node in self.filed:
            told = _read(self.run_dir / checkpoint.client_file(node, self.filed[node].round))
        return RecordDict({**told, **self.secrets.get(node, {})})

    def __setitem__(self, node: int, state: RecordDict) -> None:
        told = adapter.kept(state)
        self.secrets[node] = {key: record for key, record in state.items() if key not in told}
        if not told:
            self._forget(node)
            return
        tree, tensors = checkpoint.encode(wire.dump_records(told))
        content = save(tensors, {"state": json.dumps(tree)})
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 == self._sum(node):
            return
        disk.make_folder(self.folder.parent)
        disk.make_folder(self.folder)
        disk.put(self._new_file(node), content)
        self.new[node] = sha256

    def __delitem__(self, node: int) -> None:
        self.secrets.pop(node, None)
        self._forget(node)

    def _forget(self, node: int) -> None:
        self.filed.pop(node, None)
        if self.new.pop(node, None) is not None:
            disk.remove(self._new_file(node))

    def __contains__(self, node: object) -> bool:
        return node in self.new or node in self.filed or bool(self.secrets.get(node))  # type: ignore[call-overload]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(node for node in {*self.new, *self.filed, *self.secrets} if node in self))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def restore(self, states: Mapping[int, RecordDict]) -> None:
        """Give each client back what it kept; files of a checkpoint are taken as they are."""
        if isinstance(states, OnDisk):
            self.filed = dict(states.filed)
        else:
            self.update(states)

    def settle(self, round: int) -> Kept:
        """What clients keep now that this round is done; the next ones do not change it."""
        for node, sha256 in sorted(self.new.items()):
            disk.rename(self._new_file(node), self.run_dir / checkpoint.client_file(node, round))
            self.filed[node] = Filed(round, sha256)
        self.new.clear()
        return Kept({}, dict(self.filed))

    def close(self) -> None:
        """Remove what was written in a round that was not done."""
        for node in self.new:
            disk.remove(self._new_file(node))


def _read(path: Path) -> RecordDict:
    with safe_open(path, framework="pt") as file:
        leaves = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        tree = json.loads(file.metadata()["state"])
    return wire.load_records(checkpoint.decode(tree, leaves))
