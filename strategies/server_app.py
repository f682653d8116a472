"""The Flower ServerApp: the same in every engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedscale_local import flower_adapter as adapter
from fedscale_local import parcels, rounds
from fedscale_local.config_strategies import FlowerStrategy
from fedscale_local.errors import ConfigError, FedscaleError, RunDirError
from fedscale_local.experiment import Experiment, build, config_of, planned
from fedscale_local.instantiate import instantiate
from fedscale_local.lifecycle import begin
from fedscale_local.processes import guarded_folder
from strategies.base import FederatedStrategy
from strategies.savic import Savic

app = ServerApp()


def make_strategy(experiment: Experiment) -> Strategy:
    """The configured strategy: ours, with a preconditioner or without, or any of Flower by its import path."""
    config = experiment.config.strategy
    if isinstance(config, FlowerStrategy):
        strategy: Strategy = instantiate(config.target, config.arguments, "strategy")
        return strategy
    return (FederatedStrategy if experiment.scaling.is_identity else Savic)(experiment, config)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds of the configuration that came with the run.

    An engine made the run directory and waits for the end. Where the run brings records with it, that directory is on
    another host, and what is written here is sent there. Under `flwr run .` nobody did, and this is the whole run.
    """
    config = config_of(context.run_config)
    if not context.run_config["config"]:
        experiment = planned(config)
        if config.privacy.name == "local" and experiment.config.privacy != config.privacy:
            raise ConfigError(
                f"privacy.target_epsilon={experiment.config.privacy.target_epsilon}",  # type: ignore[union-attr]
                "`flwr run .` tells clients no more than it was told itself, so not how much noise that takes",
                f"set privacy.noise_multiplier={experiment.config.privacy.noise_multiplier} and "  # type: ignore[union-attr]
                "privacy.target_epsilon=null, or take fedscale-local run",
            )
        work = partial(_rounds, experiment, grid, Path(str(experiment.config.run_dir)))
        begin(experiment, {"name": "flwr run", "mode": "looped"}, work)
    elif parcels.RECORDS in context.run_config:
        with guarded_folder() as folder:
            parcels.unpack(str(context.run_config[parcels.RECORDS]), folder)
            with parcels.sent(folder, partial(adapter.push_log, grid)):
                _rounds(build(config), grid, folder)
    elif (Path(str(config.run_dir)) / "manifest.json").exists():
        _rounds(build(config), grid, Path(str(config.run_dir)))
    else:
        raise RunDirError(
            f"run_dir={config.run_dir}",
            "the server's side of this run was started where its run directory is not",
            "set superlink.serverapp=remote, or start the SuperLink with --isolation process and give it one run at a "
            "time",
        )


def _rounds(experiment: Experiment, grid: Grid, run_dir: Path) -> None:
    try:
        rounds.run(experiment, make_strategy(experiment), grid, run_dir)
    except SystemExit as stop:  # of a strategy or a model: Flower would take it for an end as wished
        raise FedscaleError(f"sys.exit({stop}) was called in a round") from stop
