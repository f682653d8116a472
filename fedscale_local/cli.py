"""The command `fedscale-local`: exit status 0 done, 1 failed while running, 2 wrong input, 130 interrupted.

Whatever goes wrong is one message on stderr; FEDSCALE_DEBUG=1 adds the traceback. Nothing heavy is imported
before it is needed: --help and list come without torch, and wrong overrides are refused without it.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import fedscale_local
from fedscale_local.errors import ConfigError, FedscaleError, RunDirError

PROGRAM = "fedscale-local"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _dispatch(arguments))


def _guarded(work: Callable[[], int | None]) -> int:
    """The exit status of this work; what it raises becomes one message on stderr."""
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _tell("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except FedscaleError as error:
        return _tell(str(error), error.exit_status)
    except SystemExit as stop:  # argparse after --help, Hydra after its own report
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        return _tell(f"{type(error).__name__}: {error} (FEDSCALE_DEBUG=1 shows where)", 1)


def _tell(message: str, status: int) -> int:
    if os.environ.get("FEDSCALE_DEBUG"):
        traceback.print_exc()
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    """argparse that refuses in the words of this project."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(self.prog.removeprefix(f"{PROGRAM} "), message, f"see {self.prog} --help")


def _parser(verb: str, description: str, epilog: str = "") -> _Parser:
    return _Parser(
        prog=f"{PROGRAM} {verb}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="OVERRIDE",
        help="GROUP=CHOICE or KEY=VALUE, as scaling=oasis num_rounds=50",
    )


# ---------------------------------------------------------------- commands


def run(arguments: list[str]) -> int:
    """run one experiment, or a sweep with -m"""
    parser = _parser(
        "run", "Run one experiment; with -m one for each combination of the values given.", _help_of_run()
    )
    _overrides(parser)
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="sweep: KEY=A,B takes each value in turn"
    )
    parser.add_argument("--cfg", choices=["job"], help="print the configuration instead of running it")
    parsed = parser.parse_intermixed_args(arguments)

    from fedscale_local import compose
    from fedscale_local.config import resolve_run_dir, to_container

    if parsed.cfg:
        import yaml

        print(yaml.safe_dump(to_container(compose.config(parsed.overrides)), sort_keys=False), end="")
        return 0
    if parsed.multirun or compose.sweeps_by_itself(parsed.overrides):
        return _sweep(compose.sweep(parsed.overrides))
    for override in parsed.overrides:
        if override.lstrip("+").startswith(("hydra.run.dir=", "hydra.sweep.dir=")):
            raise ConfigError(
                override, "a single run has its directory from run_dir", "set run_dir, or add -m"
            )
    return _run_one(resolve_run_dir(compose.config(parsed.overrides)))


def _run_one(config: Any) -> int:
    """One run with its progress, then where things are and what was reached."""
    from fedscale_local import experiment, progress

    with progress.follow(config.run_dir, config.num_rounds):
        run_dir = experiment.run(config)
    return _tell_results(run_dir)


def _tell_results(run_dir: Path) -> int:
    for name, file in (("model", "model.safetensors"), ("report", "report.html")):
        if (run_dir / file).exists():
            print(f"{name:<8}{run_dir / file}")
    print(f"{'final':<8}{_final(run_dir / 'rounds.jsonl')}")
    return 0


def _final(file: Path) -> str:
    """The last evaluation in words."""
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    kinds = {"test_accuracy": "test accuracy", "test_loss": "test loss", "train_loss": "train loss"}
    for record in reversed(records):
        known = [f"{words} {record[key]:.4f}" for key, words in kinds.items() if record.get(key) is not None]
        if known:
            return f"{', '.join(known)} after round {record['round']}"
    return "no round was finished"


def _sweep(planned: Any) -> int:
    """All runs of a sweep, each below hydra.sweep.dir; the status is the worst of theirs."""
    from fedscale_local import compose
    from fedscale_local.config import from_container, resolve_run_dir

    for index, job in enumerate(planned.jobs):
        config = compose.config(job)
        if config.run_dir is not None:
            raise RunDirError(
                f"run_dir={config.run_dir}",
                "the runs of a sweep have a directory each",
                "set hydra.sweep.dir instead",
            )
        resolve_run_dir(config.model_copy(update={"run_dir": str(Path(planned.folder) / str(index))}))
    statuses: list[int] = []

    def one(container: dict[str, Any], run_dir: str) -> None:
        shown = " ".join(override.lstrip("+") for override in planned.jobs[len(statuses)])
        print(f"run {len(statuses) + 1} of {len(planned.jobs)}: {shown}")
        config = from_container(container).model_copy(update={"run_dir": os.path.relpath(run_dir)})
        statuses.append(_guarded(lambda: _run_one(resolve_run_dir(config))))
        if statuses[-1] == 130:
            raise KeyboardInterrupt
        if statuses[-1] and not any(Path(run_dir).iterdir()):
            Path(run_dir).rmdir()  # Hydra made it; the run was refused

    compose.launch(planned, one)
    failed = sum(status != 0 for status in statuses)
    print(f"sweep   {planned.folder} ({len(statuses)} runs, {failed} failed)")
    return max(statuses, default=1)


def resume(arguments: list[str]) -> int:
    """carry on a run that was stopped"""
    parser = _parser(
        "resume", "Carry on a run from its newest checkpoint; the result is as if it had never stopped."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parsed = parser.parse_args(arguments)

    from fedscale_local import experiment, progress, run_dir

    config = run_dir.read(parsed.run_dir).config
    with progress.follow(parsed.run_dir, config["num_rounds"]):
        experiment.resume(Path(parsed.run_dir))
    return _tell_results(Path(parsed.run_dir))


def show(arguments: list[str]) -> int:
    """print the summary of a run directory"""
    parser = _parser("show", "Print what a run was, how far it got, what it reached and what it cost.")
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parsed = parser.parse_args(arguments)

    from fedscale_local import reports

    reports.show(parsed.run_dir)
    return 0


def partition(arguments: list[str]) -> int:
    """show what each client would hold: a table and a picture"""
    parser = _parser(
        "partition", "Divide the examples as a run with these overrides would; print a table, draw a picture."
    )
    _overrides(parser)
    parser.add_argument(
        "--out", default="partition.svg", help="the picture: .svg, .png or .pdf (%(default)s)"
    )
    parsed = parser.parse_intermixed_args(arguments)

    from fedscale_local import compose, shards

    config = compose.config([*parsed.overrides, "clients_per_round=null"])  # of no consequence here
    shards.show(config, shards.picture_path(parsed.out))
    return 0


def shard(arguments: list[str]) -> int:
    """write what one client holds to a folder, for its device"""
    parser = _parser(
        "shard",
        "Divide the examples as a run with these overrides would; write one client's part to a folder, so that its "
        "device holds nothing else. The device's node names that folder: --node-config 'partition-id=N data-path=DIR'.",
    )
    _overrides(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--client", type=int, metavar="N", help="the client, from 0")
    which.add_argument("--all", action="store_true", help="every client: DIR/0, DIR/1, ...")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder, new or empty")
    parsed = parser.parse_intermixed_args(arguments)

    from fedscale_local import compose, shards

    config = compose.config([*parsed.overrides, "clients_per_round=null"])  # of no consequence here
    shards.cut(config, parsed.client, parsed.out)
    return 0


def list_choices(arguments: list[str]) -> int:
    """list the choices of each group"""
    parser = _parser("list", "List the choices of each group of the configuration, one line each.")
    parser.add_argument("group", nargs="*", help="only these groups")
    parsed = parser.parse_args(arguments)

    from fedscale_local.compose import groups
    from fedscale_local.config_messages import choice

    known = groups()
    for name in parsed.group:
        if name not in known:
            raise ConfigError(*choice("group", name, list(known)))
    for name in parsed.group or known:
        group = known[name]
        print(f"{name}: {group.description}")
        width = max(map(len, group.choices))
        for chosen, description in group.choices.items():
            print(f"  {chosen:<{width}}  {description}{' (default)' if chosen == group.default else ''}")
    return 0


def federation(arguments: list[str]) -> int:
    """start, look at or end a whole federation on this machine"""
    parser = _parser(
        "federation",
        "A SuperLink and N SuperNodes on loopback, with TLS and a key for each node, for engine=superlink.",
    )
    parser.add_argument("action", choices=["up", "status", "down"])
    parser.add_argument("--dir", required=True, metavar="DIR", help="where its keys, state and logs are")
    parser.add_argument("--nodes", type=int, default=3, help="up: how many nodes (%(default)s)")
    parser.add_argument(
        "--shards", metavar="DIR", help="up: node K serves DIR/K alone, as written by `shard --all`"
    )
    parsed = parser.parse_args(arguments)
    if parsed.nodes < 1:
        raise ConfigError(
            f"--nodes={parsed.nodes}", "a federation needs at least one node", "set --nodes to 1 or more"
        )

    from fedscale_local import federation

    shards = None if parsed.shards is None else Path(parsed.shards)
    return federation.command(parsed.action, Path(parsed.dir), parsed.nodes, shards)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": run,
    "resume": resume,
    "show": show,
    "partition": partition,
    "shard": shard,
    "list": list_choices,
    "federation": federation,
}


def _dispatch(arguments: list[str]) -> int:
    lines = "\n".join(f"  {verb:<11}{command.__doc__}" for verb, command in COMMANDS.items())
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{fedscale_local.__doc__}\n\nusage: {PROGRAM} COMMAND ...\n\n{lines}\n")
        print(f"`{PROGRAM} COMMAND --help` tells more; the first run: {PROGRAM} run experiment=quickstart")
        return 0
    if arguments[0] == "--version":
        print(f"{PROGRAM} {fedscale_local.__version__}")
        return 0
    close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
    remedy = f"did you mean {close[0]}? If not, see {PROGRAM} --help" if close else f"see {PROGRAM} --help"
    raise ConfigError(arguments[0], f"expected one of {', '.join(COMMANDS)}", remedy)


def _help_of_run() -> str:
    """The groups with their choices, as Hydra's users know them."""
    from fedscale_local.compose import groups

    lines = [f"  {name}: {', '.join(group.choices)}" for name, group in groups().items()]
    return "configuration groups (GROUP=CHOICE; more with `fedscale-local list`):\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
