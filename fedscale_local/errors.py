"""The errors of the project, as one tree.

FedscaleError            something went wrong while running      (exit status 1)
├── InputError           the user can mend it                    (exit status 2)
│   ├── ConfigError      a key of the configuration
│   ├── DataError        a data set or a file of one
│   └── RunDirError      a run directory
├── StorageError         a file could not be written
└── ClientError          one client's work of one round
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

RAISED = (Exception, SystemExit)
"""What code from outside may end with: sys.exit() there ends a client, or what was tried with it, and not the run."""


class FedscaleError(Exception):
    """Base of every error that this project raises on purpose."""

    exit_status = 1


class InputError(FedscaleError):
    """Wrong input, told in one message: the value, what was expected, what to do.

    >>> print(InputError("client.local_steps=0", "a round needs at least one local step",
    ...                  "set client.local_steps to 1 or more"))
    client.local_steps=0: a round needs at least one local step; set client.local_steps to 1 or more.
    """

    exit_status = 2

    def __init__(self, where: str, expectation: str, remedy: str) -> None:
        super().__init__(f"{where}: {expectation}; {remedy}.")


class ConfigError(InputError):
    """A key of the configuration has a value that cannot be used."""


class DataError(InputError):
    """A data set is missing, malformed, or does not fit what was asked of it."""


class RunDirError(InputError):
    """A run directory is missing, in the way, or not writable."""


class StorageError(FedscaleError):
    """A file of a run could not be written; what was written before is whole."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be written ({reason}); what was written before is whole")
        self.path, self.reason = path, reason


class ClientError(FedscaleError):
    """A client failed at one stage (unpack, data, train, pack) of one round.

    >>> print(ClientError("train", client=3, round=7, reason="loss is nan"))
    client 3, round 7, train: loss is nan
    """

    def __init__(self, stage: str, client: int, round: int, reason: str) -> None:
        super().__init__(f"client {client}, round {round}, {stage}: {reason}")
        self.stage, self.client, self.round, self.reason = stage, client, round, reason

    def __reduce__(self) -> tuple[type[ClientError], tuple[str, int, int, str]]:
        """Errors cross process borders whole."""
        return ClientError, (self.stage, self.client, self.round, self.reason)


def lost(orders: Sequence[Any], reason: str) -> list[ClientError]:
    """What stands for the outcomes of orders (client, round) that nobody carried out."""
    return [ClientError("train", order.client, order.round, reason) for order in orders]


def late(orders: Sequence[Any]) -> list[ClientError]:
    """What stands for the outcomes of orders whose time was over."""
    return lost(orders, "no reply in time")
