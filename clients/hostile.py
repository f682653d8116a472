"""What the hostile clients of a round send instead of what they computed (attacks.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from clients.training import ClientUpdate, Order, Outcome
from fedscale_local import attacks
from fedscale_local.config_attack import COLLUDING, Alie, LabelFlip, NoAttack
from fedscale_local.experiment import Experiment
from fedscale_local.randomness import generator


def sent_instead(
    experiment: Experiment, orders: Sequence[Order], outcomes: Mapping[int, Outcome]
) -> dict[int, ClientUpdate]:
    """By client, the updates with another model; of those alone that took steps and are hostile.

    Colluding clients see what the honest ones of `orders` have computed, and are honest where there is none of them.
    """
    attack, seed = experiment.config.attack, experiment.config.seed
    if isinstance(attack, NoAttack | LabelFlip):  # flipped labels did their work in training
        return {}
    ranked = sorted(orders, key=lambda order: order.client)
    done = {
        order.client: (order, update, update.params)
        for order in ranked
        if isinstance(update := outcomes[order.client], ClientUpdate) and update.params is not None
    }
    liars = {client: entry for client, entry in done.items() if client in experiment.hostile}
    honest = [v for client, (_, _, v) in done.items() if client not in liars]
    if not liars or (attack.name in COLLUDING and not honest):
        return {}
    together: Tensor | None = None
    if isinstance(attack, Alie):
        z = attacks.z_max(len(done), len(liars)) if attack.z is None else attack.z
        together = attacks.alie(honest, z)
    elif attack.name == "inner_product":
        received = next(iter(liars.values()))[0].params
        together = attacks.inner_product(received, honest, attack.strength)

    def lie(order: Order, v: Tensor) -> Tensor:
        if together is not None:
            return together
        assert not isinstance(attack, Alie)
        if attack.name == "sign_flip":
            return attacks.sign_flip(order.params, v, attack.strength)
        stream = generator(seed, "attack", order.round, order.client)
        return attacks.gaussian(order.params, v, attack.strength, stream)

    return {client: update._replace(params=lie(order, v)) for client, (order, update, v) in liars.items()}
