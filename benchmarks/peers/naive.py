"""The plain loop, as one writes it by hand: one module, torch.optim.SGD, one client after the other, all threads."""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch_models import started, test_loss
from work import Given, Stamps

given = Given(sys.argv[1])
work, stamps = given.work, Stamps()
x, y = torch.from_numpy(given.x), torch.from_numpy(given.y)
module = started(work.model, given.initial)
generator = np.random.default_rng(0)
server = {name: value.clone() for name, value in module.state_dict().items()}
for _ in range(work.num_rounds):
    clients = given.sampled(generator)
    mean = {name: torch.zeros_like(value) for name, value in server.items()}
    for batches in torch.from_numpy(given.batches(clients, generator)):
        module.load_state_dict(server)
        optimizer = torch.optim.SGD(module.parameters(), lr=work.step_size)
        for batch in batches:
            optimizer.zero_grad()
            F.cross_entropy(module(x[batch]), y[batch]).backward()
            optimizer.step()
        for name, value in module.state_dict().items():
            mean[name] += value / len(clients)
    server = mean
    stamps.round_ended()
module.load_state_dict(server)
stamps.report(test_loss(module, given.x_test, given.y_test))
