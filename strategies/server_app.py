"""The Flower ServerApp: the same in every engine."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedscale_local import rounds
from fedscale_local.config import FlowerStrategy, from_json
from fedscale_local.experiment import Experiment, build
from fedscale_local.instantiate import instantiate
from strategies.fedavg import FedAvg
from strategies.savic import Savic

STRATEGIES = {"fedavg": FedAvg, "savic": Savic}

app = ServerApp()


def make_strategy(experiment: Experiment) -> Strategy:
    """The configured strategy: one of ours by name, or any Flower strategy by its import path."""
    config = experiment.config.strategy
    if isinstance(config, FlowerStrategy):
        strategy: Strategy = instantiate(config.target, config.arguments, "strategy")
        return strategy
    return STRATEGIES[config.name](experiment, config)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds of the configuration that came with the run."""
    config = from_json(str(context.run_config["config"]))
    experiment = build(config)
    assert config.run_dir is not None, "the run directory is resolved before an engine starts"
    rounds.run(experiment, make_strategy(experiment), grid, Path(config.run_dir))
