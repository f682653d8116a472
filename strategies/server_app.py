"""The Flower ServerApp: the same in every engine."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedscale_local import rounds
from fedscale_local.config import FlowerStrategy, resolve_run_dir
from fedscale_local.errors import RunDirError
from fedscale_local.experiment import Experiment, begin, build, config_of
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
    """Run all rounds of the configuration that came with the run.

    An engine made the run directory and waits for the end. Under `flwr run .` nobody did, and this is the whole run.
    """
    config = config_of(context.run_config)
    if not context.run_config["config"]:
        experiment = build(resolve_run_dir(config))
        begin(experiment, {"name": "flwr run", "mode": "looped"}, lambda: _rounds(experiment, grid))
    elif (Path(str(config.run_dir)) / "manifest.json").exists():
        _rounds(build(config), grid)
    else:
        raise RunDirError(
            f"run_dir={config.run_dir}",
            "the server's side of this run was started where its run directory is not",
            "start the SuperLink with --isolation process, and give it one run at a time",
        )


def _rounds(experiment: Experiment, grid: Grid) -> None:
    rounds.run(experiment, make_strategy(experiment), grid, Path(str(experiment.config.run_dir)))
