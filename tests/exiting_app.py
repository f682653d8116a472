"""Parts of a user's that call sys.exit(), as a script does when it thinks that its work is done."""

from __future__ import annotations

import sys
from typing import Any

import foreign_app
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Client 1 counts its calls, and exits in the second."""
    count = int(context.state.get("calls", ConfigRecord({"count": 0}))["count"]) + 1  # type: ignore[index,arg-type]
    context.state["calls"] = ConfigRecord({"count": count})
    if (context.node_config["partition-id"], count) == (1, 2):
        sys.exit(0)
    return foreign_app.train(message, context)


class Strategy(FedAvg):
    """It exits in round 2."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        if server_round == 2:
            sys.exit()
        return super().aggregate_train(server_round, replies)


class Model(nn.Module):
    """Its constructor exits, or else its first use does."""

    def __init__(self, is_made: bool) -> None:
        super().__init__()
        if not is_made:
            sys.exit("no such device")

    def forward(self, x: Any) -> Any:
        sys.exit(0)
