# ruff: noqa: E402
"""FedJAX: its federated averaging on its jit backend, each client's examples in memory, one local epoch."""

import sys

import jax

jax.tree_map = jax.tree.map  # FedJAX 0.0.17 calls it by the name that newer JAX has dropped
import fedjax
import jax.numpy as jnp
import numpy as np
from jax_models import loss, params_of
from work import Given, Stamps

given = Given(sys.argv[1])
work, stamps = given.work, Stamps()
fedjax.set_for_each_client_backend("jit")
data = fedjax.InMemoryFederatedData(
    {i: {"x": given.x[shard], "y": given.y[shard]} for i, shard in enumerate(given.shards)}
)
algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    grad_fn=jax.grad(lambda p, batch, rng: loss(p, work.model, batch["x"], batch["y"])),
    client_optimizer=fedjax.optimizers.sgd(work.step_size),
    server_optimizer=fedjax.optimizers.sgd(1.0),
    client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(batch_size=work.batch_size, num_epochs=1, seed=0),
)
sampler = fedjax.client_samplers.UniformGetClientSampler(data, work.clients_per_round, seed=0)
state = algorithm.init(params_of(given.initial))
for number in range(work.num_rounds):
    sampler.set_round_num(number)
    state, _ = algorithm.apply(state, sampler.sample())
    jax.block_until_ready(state.params)
    stamps.round_ended()
final = loss(state.params, work.model, jnp.asarray(given.x_test), jnp.asarray(np.asarray(given.y_test)))
stamps.report(float(final))
