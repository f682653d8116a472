"""pfl-research: federated averaging on its simulated backend; torchrun starts its workers, of one thread each."""

import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from torch_models import started, test_loss
from work import Given, Stamps

torch.set_num_threads(1)
np.random.seed(0)
given = Given(sys.argv[1])
work, stamps = given.work, Stamps()
x, y = torch.from_numpy(given.x), torch.from_numpy(given.y)
module = started(work.model, given.initial)
module.loss = lambda inputs, labels: F.cross_entropy(module(inputs), labels)
module.metrics = lambda inputs, labels: {}


class Ends(TrainingProcessCallback):
    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        stamps.round_ended()
        return False, type(aggregate_metrics)()


users = {
    i: PyTorchTensorDataset([x[order], y[order]], user_id=str(i))
    for i, shard in enumerate(given.shards)
    for order in [torch.from_numpy(np.random.permutation(shard))]
}
sampler = get_user_sampler("minimize_reuse", list(users))
data = FederatedDataset(users.__getitem__, sampler)
model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=work.num_rounds,
        evaluation_frequency=10**6,
        train_cohort_size=work.clients_per_round,
        val_cohort_size=0,
    ),
    SimulatedBackend(training_data=data, val_data=data),
    model,
    NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=work.step_size, local_batch_size=work.batch_size
    ),
    callbacks=[Ends()],
)
if os.environ.get("RANK", "0") == "0":
    stamps.report(test_loss(module, given.x_test, given.y_test))
if torch.distributed.is_initialized():
    # A process that ends while the other still speaks to it is aborted, now and then.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
