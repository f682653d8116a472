"""Local SGD with one preconditioner D, frozen between synchronisations: the scaled local method.

    round 0 (probe):  clients measure h_m at x_0; the server refreshes D once and applies the floor
    round p = 1..P:   server sends x and D-hat; clients step and measure h_m
                      x <- sum_m w_m v_m;  D <- refresh(D, combine(h_m));  D-hat <- floor(D)

In local scope each client keeps a D of its own and D never travels, except that preconditioned mixing needs the
clients' D-hat_m. With the displacement statistic, or a D that is refreshed seldom, a client that has what it needs
is sent nothing but x.

Source: Chezhegov et al., Local Methods with Adaptivity via Scaling, arXiv 2406.00846.
Departures: where the paper leaves a choice, ours is in docs/explanation-algorithm.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedscale_local import server_step, wire
from fedscale_local.config_strategies import Strategy as Method
from fedscale_local.curvature import SIGNED
from fedscale_local.experiment import Experiment
from fedscale_local.scaling import Memory
from strategies.base import FederatedStrategy, Instructions, Reply


class Savic(FederatedStrategy):
    """The scaled local method, in all scopes and mixings."""

    survives = (*FederatedStrategy.survives, "memory", "held", "derivable", "mean_steps")

    def __init__(self, experiment: Experiment, method: Method) -> None:
        super().__init__(experiment, method)
        self.config = experiment.config.scaling
        self.scaling = experiment.scaling
        self.is_global = self.config.scope == "global" and not self.scaling.is_identity
        start = self.scaling.init(experiment.task.initial_params, ones=experiment.starts_at_ones)
        self.memory = start if self.is_global else None
        self.held: dict[int, int] = {}
        """Which clock of D each client has; it answered in the round in which it got that one."""
        self.derivable: set[int] = set()
        """Clients that can refresh D themselves from the last round's displacement, and need not be sent it."""
        self.mean_steps = 0.0

    @property
    def memory(self) -> Memory | None:
        """What D-hat is made of."""
        return self._memory

    @memory.setter
    def memory(self, memory: Memory | None) -> None:
        self._memory = memory
        self.d_hat = self.scaling.d_hat(memory)

    def expects(self, round: int) -> dict[str, int]:
        vectors, size = super().expects(round), self.task.layout.size
        if self._is_measured(round):
            vectors |= {wire.STATISTIC: size}
        return vectors | ({wire.PRECONDITIONER: size} if self.method.mixing == "preconditioned" else {})

    def downlink(self, round: int, client: int) -> tuple[dict[str, Tensor], Instructions]:
        vectors, instructions = super().downlink(round, client)
        instructions["mix"] = self.method.mixing == "preconditioned"
        if not self.is_global:
            return vectors, instructions
        instructions["measure"] = self._is_measured(round)
        return vectors | self._preconditioner(client, instructions), instructions

    def _preconditioner(self, client: int, instructions: Instructions) -> dict[str, Tensor]:
        """What this client needs to have the D-hat of the round, and in `instructions` how it gets it from that."""
        # Until it answers, nobody knows what the client has.
        held, derives = self.held.pop(client, None), client in self.derivable
        self.derivable.discard(client)
        if self.d_hat is None or self.memory is None:
            return {}
        clock = int(self.memory.clock)
        instructions["clock"] = clock
        if held == clock:
            return {}
        if derives:
            instructions["mean-steps"] = self.mean_steps
            return {}
        if self.config.statistic == "displacement":
            return {wire.MEMORY: self.memory.value}
        return {wire.PRECONDITIONER: self.d_hat}

    def update(
        self, round: int, replies: list[Reply], weights: list[float]
    ) -> tuple[Tensor, dict[str, float]]:
        before, (params, _) = self.params, super().update(round, replies, weights)
        if not self.is_global:
            return params, _own_range(replies)
        self.derivable = set()
        if self.experiment.keeps_preconditioner and round > 0 and self.memory is not None:
            self.held |= dict.fromkeys(self.answered, int(self.memory.clock))
        if not self._is_due(round):
            return params, self._diagnostics(self.d_hat)
        previous = self.d_hat
        assert self.memory is not None
        if self.config.statistic == "displacement":
            steps = [float(reply.metrics["local-steps"]) for reply in replies]  # type: ignore[arg-type]
            self.mean_steps = sum(w * n for w, n in zip(weights, steps, strict=True))
            step_size = self.experiment.config.client.step_size
            h = server_step.displacement(before, params, self.d_hat, self.mean_steps, step_size)
            self.derivable = set(self.answered)
        else:
            statistics = (reply.extra[wire.STATISTIC] for reply in replies)
            signed = self.config.statistic in SIGNED
            h = server_step.combine(statistics, weights, self.config.combine, signed)
        self.memory = self.scaling.refresh(self.memory, h)
        return params, self._diagnostics(previous)

    def divisor(self, replies: list[Reply], weights: list[float]) -> Tensor | None:
        if self.method.mixing == "preconditioned":
            return server_step.weighted_sum((r.extra[wire.PRECONDITIONER] for r in replies), weights)
        if not self.is_global:
            return None
        return torch.ones_like(self.params) if self.d_hat is None else self.d_hat

    def _is_measured(self, round: int) -> bool:
        """Do clients send their statistic in this round?"""
        return self.is_global and self.config.statistic != "displacement" and self._is_due(round)

    def _is_due(self, round: int) -> bool:
        return round % self.config.refresh_every == 0

    def _diagnostics(self, previous: Tensor | None) -> dict[str, float]:
        if self.d_hat is None or self.memory is None:
            return {}
        clock = {"d_clock": float(self.memory.clock)}
        return server_step.diagnostics(self.d_hat, previous, self.scaling.alpha) | clock


def _own_range(replies: list[Reply]) -> dict[str, float]:
    """The range over clients of the D-hat that they keep themselves."""
    lows = [float(r.metrics["d-min"]) for r in replies if "d-min" in r.metrics]  # type: ignore[arg-type]
    highs = [float(r.metrics["d-max"]) for r in replies if "d-max" in r.metrics]  # type: ignore[arg-type]
    if not lows or not min(lows) > 0:
        return {}
    return {"d_min": min(lows), "d_max": max(highs), "d_condition": max(highs) / min(lows)}
