"""The Flower peer's apps: FedAvg over clients that keep their process's data and module. Imported, not pickled."""

import os
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch_models import started, test_loss
from work import Given, Stamps


@cache
def loaded():
    """The work, its arrays as tensors and one module: once a process, which serves many clients in turn."""
    torch.set_num_threads(1)
    given = Given(os.environ["PEER_WORK"])
    return (
        given,
        torch.from_numpy(given.x),
        torch.from_numpy(given.y),
        started(given.work.model, given.initial),
    )


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    given, x, y, module = loaded()
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=given.work.step_size)
    client = np.array([int(context.node_config["partition-id"])])
    for batch in torch.from_numpy(given.batches(client, np.random.default_rng())[0]):
        optimizer.zero_grad()
        F.cross_entropy(module(x[batch]), y[batch]).backward()
        optimizer.step()
    records = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(records), reply_to=message)


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    given, _, _, module = loaded()
    stamps = Stamps()

    def ended(number: int, arrays: ArrayRecord) -> None:
        if number > 0:
            stamps.round_ended()

    work = given.work
    strategy = FedAvg(fraction_train=work.clients_per_round / work.num_clients, fraction_evaluate=0.0)
    result = strategy.start(grid, ArrayRecord(module.state_dict()), work.num_rounds, evaluate_fn=ended)
    module.load_state_dict(result.arrays.to_torch_state_dict())
    stamps.report(test_loss(module, given.x_test, given.y_test))
