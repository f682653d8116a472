"""FedAvg, which with local steps is Local SGD (McMahan et al. 2017, Algorithm 1).

x <- sum_m w_m v_m
"""

from __future__ import annotations

from flwr.app import ConfigRecord
from torch import Tensor

from fedscale_local.server_step import weighted_sum
from strategies.base import FederatedStrategy, Reply


class FedAvg(FederatedStrategy):
    """The weighted mean of the clients' models; nothing but models travels."""

    def downlink(self, round: int, client: int) -> tuple[dict[str, Tensor], ConfigRecord]:
        return {}, ConfigRecord()

    def update(
        self, round: int, replies: list[Reply], weights: list[float]
    ) -> tuple[Tensor, dict[str, float]]:
        return weighted_sum((reply.params for reply in replies), weights), {}
