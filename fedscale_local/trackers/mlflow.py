"""MLflow: one experiment a sweep, in which the runs of one method under several seeds are nested in one.

A run that is carried on goes on in the run that it has there, after the last round that was told. MLflow's own
telemetry is off, and only the configured store is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

# What MLflow reads when it is imported: no telemetry, no words of its own, and no long wait for a server that is away.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for name, value in {"MLFLOW_LOGGING_LEVEL": "WARNING", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}.items():
    os.environ.setdefault(name, value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

from fedscale_local import identity, locks  # noqa: E402
from fedscale_local.config import to_container  # noqa: E402
from fedscale_local.config_tracking import Mlflow  # noqa: E402
from fedscale_local.trackers import Send, Told  # noqa: E402

OURS = "fedscale_run"
"""The tag by which a run of ours is found again."""
IN_EVERY_ROUND = "bytes_up"
MOST_PARAMS, LONGEST_PARAM = 100, 500
STATUS = {"done": "FINISHED", "failed": "FAILED"}


@contextmanager
def opened(told: Told) -> Iterator[tuple[Send, int]]:
    assert isinstance(told.config.tracking, Mlflow)
    with locks.turn(
        told.run_dir.parent
    ):  # two that make the tables of a new store at once are in each other's way
        client = MlflowClient(told.config.tracking.uri)
        run_id = _run(client, told)
    client.update_run(run_id, "RUNNING")
    history = client.get_metric_history(run_id, IN_EVERY_ROUND)

    def send(round: int, seconds: float, numbers: Mapping[str, float]) -> None:
        stamp = int(1000 * seconds)
        client.log_batch(run_id, [Metric(name, value, stamp, round) for name, value in numbers.items()])

    yield send, max((metric.step for metric in history), default=0)
    ended = str(told.manifest["exit"]).partition(":")[0]
    client.set_terminated(run_id, STATUS.get(ended, "KILLED"))


def _run(client: MlflowClient, told: Told) -> str:
    """The run of this run directory, as it was begun; made if it is not there."""
    assert isinstance(told.config.tracking, Mlflow)
    place = str(told.run_dir.absolute())
    own = hashlib.sha256(json.dumps([place, told.manifest["started"]]).encode()).hexdigest()
    name = told.config.tracking.experiment or ("fedscale-local" if told.sweep is None else str(told.sweep))
    with suppress(MlflowException):  # it is there already
        client.create_experiment(name)
    found = client.get_experiment_by_name(name)
    if found is None:
        raise MlflowException(f"the experiment {name} cannot be made")
    experiment = str(found.experiment_id)
    known = _find(client, experiment, own)
    if known is not None:
        return known
    tags = {OURS: own, "run_dir": place}
    if told.overrides is not None:
        tags["overrides"] = told.overrides
        tags |= _parent(client, experiment, told.overrides.split())
    run_id = str(client.create_run(experiment, run_name=told.run_dir.name, tags=tags).info.run_id)
    params = [
        Param(key, json.dumps(value).strip('"')[:LONGEST_PARAM])
        for key, value in identity.flat(to_container(told.config))
    ]
    for first in range(0, len(params), MOST_PARAMS):
        client.log_batch(run_id, params=params[first : first + MOST_PARAMS])
    return run_id


def _parent(client: MlflowClient, experiment: str, overrides: list[str]) -> dict[str, str]:
    """The tag that nests a cell in its method's run, where the sweep has several seeds."""
    method = [override for override in overrides if not override.startswith("seed=")]
    if len(method) == len(overrides):
        return {}
    name = " ".join(method) or "all seeds"
    own = hashlib.sha256(name.encode()).hexdigest()
    parent = _find(client, experiment, own)
    if parent is None:
        parent = str(client.create_run(experiment, run_name=name, tags={OURS: own}).info.run_id)
        client.set_terminated(parent)
    return {"mlflow.parentRunId": parent}


def _find(client: MlflowClient, experiment: str, own: str) -> str | None:
    found = client.search_runs([experiment], f"tags.{OURS} = '{own}'", max_results=1)
    return str(found[0].info.run_id) if found else None
