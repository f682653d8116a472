"""One run from its beginning to its report: what is refused before it, how it ends, how it goes on.

choose a way on the engine -> make or take up the run directory -> all rounds -> how it ended -> report
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedscale_local import checkpoint, identity, locks, records, reports, trackers
from fedscale_local import run_dir as run_dirs
from fedscale_local.config import Config, from_container
from fedscale_local.errors import InputError, RunDirError, StorageError
from fedscale_local.experiment import SERVER_APP, Experiment, aimed, build, client_app, planned
from fedscale_local.instantiate import locate
from fedscale_local.processes import uncollected

MAKE_STRATEGY = "strategies.server_app.make_strategy"
"""By its name: the machinery does not import it."""
Work = Callable[[], None]

log = logging.getLogger(__name__)


def run(config: Config) -> Path:
    """One whole run; returns its directory. What can be refused is refused before the directory is made."""
    trackers.check(config)
    experiment = planned(config)
    chosen, work = _engine(experiment, {})
    locate(MAKE_STRATEGY)(experiment)  # a strategy of the user's own may be refused too
    return begin(experiment, chosen, work)


def resume(run_dir: Path, config: Config | None = None, accept_changes: bool = False) -> Path:
    """Carry on a run from its newest checkpoint, or from the beginning where it has none; returns its directory.

    config: what the run goes on with, where that is not what its config.yaml says (compose.again). accept_changes:
    go on although configuration, code or libraries are not what they were; the manifest tells of it.

    Raises:
        RunDirError: there are such changes and they were not accepted, another process is at work in the directory,
            or more rounds are done than are wanted.
    """
    run_dirs.head(run_dir)  # a directory that is none of a run's gets no lock either
    with locks.hold(run_dir):
        return _carry_out(*_take_up(run_dir, config, accept_changes))


def _take_up(run_dir: Path, config: Config | None, accept_changes: bool) -> tuple[Experiment, Work, int]:
    """The rest of a run that may go on, and the rounds that are done; what it goes on from is not held meanwhile."""
    saved, manifest = run_dirs.head(run_dir)
    config = config or from_container(saved)
    trackers.check(config)
    experiment = build(config.model_copy(update={"run_dir": str(run_dir)}))
    found = checkpoint.newest(run_dir)
    if found.checkpoint is None:
        experiment = aimed(experiment)
    chosen, work = _engine(experiment, manifest.get("engine", {}))
    notes = [f"a checkpoint is passed over: {reason}" for reason in found.passed_over]
    round = 0
    if found.checkpoint is not None:
        round = found.checkpoint.round
        changes = identity.differences(config, chosen, manifest, found.checkpoint.config)
        if changes and not accept_changes:
            raise RunDirError(
                f"run_dir={run_dir}",
                f"it would not end with the same bytes, as something has changed: {'; '.join(changes)}",
                "undo that, or go on all the same with --accept-changes, which the manifest will tell",
            )
        notes += [f"a change is accepted: {words}" for words in changes]
    if round > config.num_rounds:
        raise RunDirError(
            f"num_rounds={config.num_rounds}",
            f"{round} rounds are done in {run_dir}",
            f"set num_rounds to {round} or more",
        )
    for note in notes:
        log.warning("%s", note)
    records.carry_on(run_dir, experiment.config, chosen, round, notes)
    return experiment, work, round


def begin(experiment: Experiment, chosen: dict[str, Any], work: Work) -> Path:
    """Make the run directory and do the rounds in it by `work`; `chosen` tells the manifest how."""
    run_dir = Path(str(experiment.config.run_dir))
    with locks.hold(run_dir):
        records.create(run_dir, experiment, chosen)
        for warning in experiment.mechanism.warnings if experiment.mechanism else ():
            log.warning("%s", warning)
        return _carry_out(experiment, work)


def _engine(experiment: Experiment, before: Mapping[str, Any]) -> tuple[dict[str, Any], Work]:
    """What the configured engine chooses, for the manifest, and all rounds on it; before: of a run that goes on."""
    module = f"fedscale_local.engines.{experiment.config.engine.name}"
    chosen = locate(f"{module}.choose")(experiment, before)
    engine = locate(f"{module}.run")
    return chosen, lambda: engine(experiment, chosen, locate(SERVER_APP), client_app(experiment.config))


def _carry_out(experiment: Experiment, work: Work, after: int = 0) -> Path:
    """The rounds after this one, how they ended, and the report; a run that did not end says how to go on."""
    run_dir = Path(str(experiment.config.run_dir))
    with trackers.follow(experiment.config, after):
        _to_the_end(run_dir, work)
    try:
        with uncollected():
            reports.write(run_dir)
    except OSError as error:
        raise StorageError(run_dir / "report.html", error.strerror or str(error)) from error
    return run_dir


def _to_the_end(run_dir: Path, work: Work) -> None:
    """Do this, and let the manifest say how it ended."""
    try:
        work()
        records.finish(run_dir, "done")
    except BaseException as error:
        is_interrupted = isinstance(error, KeyboardInterrupt)
        with suppress(StorageError):  # as on a full disk, which is told already
            ended = "interrupted" if is_interrupted else f"failed: {type(error).__name__}: {error}"
            records.finish(run_dir, ended)
        if not isinstance(error, InputError):
            error.add_note(f"carry on with: fedscale-local resume {shlex.quote(str(run_dir))}")
        raise
