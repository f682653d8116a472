"""The command `fedscale-local`: exit status 0 done, 1 failed while running, 2 wrong input, 130 interrupted.

Whatever goes wrong is one message on stderr; FEDSCALE_DEBUG=1 adds the traceback. Nothing heavy is imported
before it is needed: --help and list come without torch, and wrong overrides are refused without it.
"""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import fedscale_local
from fedscale_local.errors import ConfigError, FedscaleError
from fedscale_local.processes import lasting

PROGRAM = "fedscale-local"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
    return guarded(lambda: _dispatch(arguments))


def interrupt(number: int, frame: object) -> NoReturn:
    """SIGTERM ends a command as Ctrl-C does."""
    raise KeyboardInterrupt


def guarded(work: Callable[[], int | None]) -> int:
    """The exit status of this work; what it raises becomes one message on stderr."""
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:
        return _tell("interrupted", 130, stop)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except FedscaleError as error:
        return _tell(str(error), error.exit_status, error)
    except _Helped:
        return 0
    except SystemExit as stop:  # of code from outside, whatever its status: the work was not done
        return _tell(f"sys.exit({stop}) was called before the work was done", 1, stop)
    except Exception as error:
        return _tell(f"{type(error).__name__}: {error} (FEDSCALE_DEBUG=1 shows where)", 1, error)


def _tell(message: str, status: int, error: BaseException) -> int:
    """One message with what is to be added to it, such as how to carry on."""
    message = "; ".join([message, *getattr(error, "__notes__", [])])
    if os.environ.get("FEDSCALE_DEBUG"):
        traceback.print_exc()
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return status


class _Helped(Exception):
    """--help was asked for and given."""


class _Parser(argparse.ArgumentParser):
    """argparse that refuses in the words of this project."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(self.prog.removeprefix(f"{PROGRAM} "), message, f"see {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Helped


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
    parser.add_argument("--force", action="store_true", help="of a sweep: do again what is done")
    parser.add_argument("--cfg", choices=["job"], help="print the configuration instead of running it")
    parsed = parser.parse_intermixed_args(arguments)

    with lasting():
        from fedscale_local import compose
        from fedscale_local.config import resolve_run_dir, to_container

        is_sweep = parsed.multirun or compose.sweeps_by_itself(parsed.overrides)
    if parsed.cfg:
        import yaml

        print(yaml.safe_dump(to_container(compose.config(parsed.overrides)), sort_keys=False), end="")
        return 0
    if is_sweep:
        from fedscale_local import sweep

        return sweep.run(compose.sweep(parsed.overrides), parsed.force)
    if parsed.force:
        raise ConfigError("--force", "only a sweep does runs again", "add -m, or choose another run_dir")
    for override in parsed.overrides:
        if override.lstrip("+").startswith(("hydra.run.dir=", "hydra.sweep.dir=")):
            raise ConfigError(
                override, "a single run has its directory from run_dir", "set run_dir, or add -m"
            )
    with lasting():
        config = resolve_run_dir(compose.config(parsed.overrides))
    return _run_one(config)


def tune(arguments: list[str]) -> int:
    """tune methods, each with as many trials"""
    parser = _parser(
        "tune",
        "Search for good values of some keys, for each method with as many trials, and compare the best. The space is\n"
        "in Hydra's grammar: 'KEY=tag(log, interval(0.001, 1))', 'KEY=interval(0, 1)', 'KEY=int(interval(1, 9))',\n"
        "'KEY=range(1, 9, 2)', 'KEY=choice(A, B)'. KEY=A,B are methods to compare; seed=0,1 are the seeds of each\n"
        "trial. tune.trials, tune.metric and the other keys of that section say how. The same command carries on.",
    )
    _overrides(parser)
    parsed = parser.parse_intermixed_args(arguments)

    from fedscale_local.compose_tuning import tuning

    planned = tuning(parsed.overrides)

    from fedscale_local import tune

    return tune.run(planned)


def _run_one(config: Any) -> int:
    """One run with its progress, then where things are and what was reached."""
    with lasting():
        from fedscale_local import lifecycle, progress

    with progress.follow(config.run_dir, config.num_rounds):
        run_dir = lifecycle.run(config)
    return _tell_results(run_dir)


def _tell_results(run_dir: Path) -> int:
    from fedscale_local.reports.facts import final_words

    for name, file in (("model", "model.safetensors"), ("report", "report.html")):
        if (run_dir / file).exists():
            print(f"{name:<8}{run_dir / file}")
    print(f"{'final':<8}{final_words(run_dir / 'rounds.jsonl')}")
    return 0


def resume(arguments: list[str]) -> int:
    """carry on a run that was stopped"""
    parser = _parser(
        "resume",
        "Carry on a run from its newest checkpoint; the result is as if it had never stopped. A larger num_rounds "
        "extends a run.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="KEY=VALUE that decides no result, as num_rounds=200"
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although configuration, code or libraries have changed; the manifest tells of it",
    )
    parsed = parser.parse_intermixed_args(arguments)

    from fedscale_local import compose, run_dir

    config = compose.again(run_dir.head(Path(parsed.run_dir))[0], parsed.overrides)

    from fedscale_local import lifecycle, progress

    with progress.follow(parsed.run_dir, config.num_rounds):
        lifecycle.resume(Path(parsed.run_dir), config, parsed.accept_changes)
    return _tell_results(Path(parsed.run_dir))


def show(arguments: list[str]) -> int:
    """print the summary of a run directory"""
    parser = _parser("show", "Print what a run was, how far it got, what it reached and what it cost.")
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parsed = parser.parse_args(arguments)

    from fedscale_local import reports

    reports.show(parsed.run_dir)
    return 0


def compare(arguments: list[str]) -> int:
    """compare the runs of several methods"""
    parser = _parser(
        "compare",
        "Compare finished runs: which method is better, by how much, and how sure that is. Runs that differ by\n"
        "their seed alone are one method; methods are compared in pairs of runs with the same seed.",
    )
    parser.add_argument(
        "directories", nargs="+", metavar="DIR", help="a run directory, or one with runs below it"
    )
    parser.add_argument(
        "--out", default="report.html", metavar="FILE", help="the page to write (%(default)s)"
    )
    parser.add_argument(
        "--at",
        metavar="BUDGET",
        help="rounds=100, bytes=50MB or steps=20000 (default: the rounds that all have)",
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="VALUE",
        help="tell what it took to get there (default: what all reached)",
    )
    parser.add_argument(
        "--clock",
        metavar="TIMES",
        help="what a simulated round takes (default: step=10ms,down=50Mbit,up=10Mbit,latency=100ms)",
    )
    parsed = parser.parse_intermixed_args(arguments)

    from fedscale_local import reports

    page = reports.compare(parsed.directories, parsed.out, parsed.at, parsed.target, clock=parsed.clock)
    print(f"report  {page}")
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
    """keys for a federation; start, look at, mend or end a whole one on this machine"""
    parser = _parser(
        "federation",
        "up: a SuperLink and N SuperNodes on loopback, with TLS and a key for each node, for engine=superlink; status "
        "and down look at it and end it. keys: only the certificates and keys, for a federation of several machines.",
    )
    parser.add_argument("action", choices=["keys", "up", "status", "restart", "down"])
    parser.add_argument("--dir", required=True, metavar="DIR", help="where its keys, state and logs are")
    parser.add_argument("--nodes", type=int, default=3, help="keys, up: how many nodes (%(default)s)")
    parser.add_argument(
        "--host",
        action="append",
        metavar="HOST",
        help="keys: a name or number under which the SuperLink is reached, once or more; loopback is always one",
    )
    parser.add_argument(
        "--shards", metavar="DIR", help="up: node K serves DIR/K alone, as written by `shard --all`"
    )
    parser.add_argument(
        "--serverapp",
        choices=["beside", "remote"],
        default="beside",
        help="up: the server's side of a run runs beside its command, or the SuperLink starts it (%(default)s)",
    )
    parsed = parser.parse_args(arguments)
    if parsed.nodes < 1:
        raise ConfigError(
            f"--nodes={parsed.nodes}", "a federation needs at least one node", "set --nodes to 1 or more"
        )
    if (parsed.action == "keys") != bool(parsed.host):
        raise ConfigError(
            f"federation {parsed.action}",
            "--host names the SuperLink in its certificate, so `keys` needs it and no other action takes it",
            "as in `fedscale-local federation keys --dir=keys --host=fl.example.org --nodes=2`",
        )

    from fedscale_local import federation

    shards = None if parsed.shards is None else Path(parsed.shards)
    return federation.command(
        parsed.action, Path(parsed.dir), parsed.nodes, shards, parsed.host or [], parsed.serverapp
    )


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": run,
    "tune": tune,
    "resume": resume,
    "show": show,
    "compare": compare,
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
