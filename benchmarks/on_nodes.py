"""What a run costs on a SuperLink and its SuperNodes: seconds, peak memory of each part, bytes by both counts.

    python -m benchmarks.on_nodes model.hidden=[1250] num_clients=2 clients_per_round=null num_rounds=2
    python -m benchmarks.on_nodes --serverapp remote model.hidden=[1250] num_clients=2 clients_per_round=null

The arguments are overrides of the run. A federation with one node for each client is made for it and ended after it.
Then the same run is done in process, to add up its messages as Flower's objects: arrays with headers and names; and to
compare the bytes of records and model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedscale_local import compose, federation, lifecycle
from fedscale_local import flower_adapter as adapter
from fedscale_local.config import Config, to_json
from fedscale_local.engines import flower_command
from fedscale_local.engines.in_process import InProcessGrid
from fedscale_local.processes import processes_of


class Traffic(NamedTuple):
    """Bytes from clients to the server (up) and back (down)."""

    up: int
    down: int


def ledger(run_dir: Path) -> Traffic:
    """What rounds.jsonl adds up to."""
    lines = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    return Traffic(sum(line["bytes_up"] for line in lines), sum(line["bytes_down"] for line in lines))


def superlink(nodes: Path) -> Traffic:
    """What the SuperLink of this federation counted for its newest run."""
    home = nodes / "superlink"
    said = flower_command.flwr(["list", flower_command.HERE], home, flower_command.environment(home))["runs"]
    traffic = flower_command.flwr(
        ["list", flower_command.HERE, "--run-id", said[0]["run-id"]], home, flower_command.environment(home)
    )["runs"][0]["network-traffic"]
    return Traffic(traffic["inbound-bytes"], traffic["outbound-bytes"])


class Objects(NamedTuple):
    """What the messages of a run in process are as Flower's objects, by what they are for; and what the run leaves."""

    rounds: Traffic
    evaluation: Traffic
    """How each client does with a model of its own, asked at the end (eval_personal_steps)."""
    states: Traffic
    """What clients keep, fetched for one checkpoint; going on from there brings back as many bytes."""
    outcome: list[bytes]


def objects(config: Config) -> Objects:
    """The same run in process."""
    deliver, found = InProcessGrid.send_and_receive, {"train": Traffic(0, 0), "evaluate": Traffic(0, 0)}
    grids: list[InProcessGrid] = []

    def counting(grid: InProcessGrid, messages: Iterable[Message], **options: Any) -> list[Message]:
        sent = list(messages)
        replies = list(deliver(grid, sent, **options))
        for kind, before in found.items():
            own = [[m for m in some if m.metadata.message_type == kind] for some in (replies, sent)]
            found[kind] = Traffic(
                *(count + sum(map(_object_bytes, m)) for count, m in zip(before, own, strict=True))
            )
        grids[:] = [grid]
        return replies

    with tempfile.TemporaryDirectory() as place, patch.object(InProcessGrid, "send_and_receive", counting):
        engine = compose.config(["engine.mode=looped", "engine.workers=1"]).engine
        run_dir = lifecycle.run(config.model_copy(update={"engine": engine, "run_dir": f"{place}/run"}))
        told = {node: adapter.kept(state) for node, state in grids[0].states.items()}
        kept = [(node, state) for node, state in told.items() if state]
        answers = [adapter.message_to(node, state, adapter.STATE) for node, state in kept]
        questions = [adapter.message_to(node, RecordDict(), adapter.STATE) for node, _ in kept]
        states = Traffic(*(sum(map(_object_bytes, messages)) for messages in (answers, questions)))
        return Objects(found["train"], found["evaluate"], states, outcome(run_dir))


def outcome(run_dir: Path) -> list[bytes]:
    """What the seed determines."""
    return [(run_dir / name).read_bytes() for name in ("rounds.jsonl", "model.safetensors")]


def _object_bytes(message: Message) -> int:
    return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())


def measured(homes: dict[str, Path], work: Callable[[], None]) -> tuple[float, dict[str, float]]:
    """Seconds of the work, and the largest memory (MB, resident) of all processes of each home together."""
    peaks, done = dict.fromkeys(homes, 0.0), threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            for name, home in homes.items():
                peaks[name] = max(peaks[name], sum(map(_resident, processes_of(home))))

    watcher, began = threading.Thread(target=watch), time.monotonic()
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return time.monotonic() - began, peaks


def _resident(process: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1e3
    return 0.0


COMMAND = """
import sys
from fedscale_local import config, lifecycle
lifecycle.run(config.from_json(sys.stdin.read()))
"""


def measure(config: Config, nodes: Path) -> dict[str, Any]:
    """One run on the federation at `nodes`. The server's side counts where it runs: with command or SuperLink."""
    run_dir = Path(str(config.run_dir))
    homes = {"command": run_dir.with_name("command"), "SuperLink": nodes / "superlink"}
    homes |= {f"node {home.name}": home for home in sorted((nodes / "nodes").iterdir())}
    environment = os.environ | {"FLWR_HOME": str(homes["command"])}

    def run() -> None:
        command = [sys.executable, "-c", COMMAND]
        subprocess.run(command, input=to_json(config), text=True, env=environment, check=True)

    seconds, peaks = measured(homes, run)
    timing = [
        json.loads(line)["round_seconds"] for line in (run_dir / "timing.jsonl").read_text().splitlines()
    ]
    in_process = objects(config)
    return {
        "same_bytes_as_in_process": outcome(run_dir) == in_process.outcome,
        "seconds": round(seconds, 1),
        "round_seconds": [round(value, 1) for value in timing],
        "peak_mb": {name: round(value) for name, value in peaks.items()},
        "run_dir_mb": round(sum(path.stat().st_size for path in run_dir.rglob("*") if path.is_file()) / 1e6),
        "superlink_db_mb": round((nodes / "superlink" / "state.db").stat().st_size / 1e6),
        "ledger": ledger(run_dir)._asdict(),
        "superlink": superlink(nodes)._asdict(),
        "objects": in_process.rounds._asdict(),
        "evaluation": in_process.evaluation._asdict(),
        "states": in_process.states._asdict(),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serverapp", choices=["beside", "remote"], default="beside")
    parser.add_argument("overrides", nargs="*")
    parsed = parser.parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        nodes, run_dir = Path(place) / "federation", Path(place) / "run"
        config = compose.config(
            [*parsed.overrides, "engine=superlink", f"superlink.federation={nodes}", f"run_dir={run_dir}"]
        )
        federation.up(nodes, int(config.num_clients or 0), serverapp=parsed.serverapp)
        try:
            found = measure(config, nodes)
        finally:
            federation.down(nodes)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
