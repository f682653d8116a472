"""What an engine costs beside the clients' own work: seconds until the first round, and seconds of a round.

    python -m benchmarks.engine_overhead --out benchmarks/results/engine_overhead.json

The work is next to nothing (logistic regression, one step a client), so what is measured is the engine. Each run is a
command of its own. Its start-up is the time from the command to the start of round 1, and to its end, in which Ray's
workers and nodes load torch for the first time; a round is the median of the rounds after the second. Of the repeats
the medians are told. For the SuperLink a federation is up already, on loopback, with one node for each client.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import save
from fedscale_local import federation

WORK = ["data=synthetic", "partition=natural", "model=logistic", "strategy=fedavg", "client.local_steps=1"]
WORK += ["eval_every=1000", "checkpoint_every=0"]


def timed(run_dir: Path, overrides: list[str]) -> dict[str, float]:
    """Seconds of one run, from its command."""
    command = [sys.executable, "-m", "fedscale_local.cli", "run", *WORK, *overrides, f"run_dir={run_dir}"]
    lines, began = run_dir / "timing.jsonl", time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (lines.exists() and lines.read_bytes().endswith(b"\n")):
            time.sleep(0.005)
        first = time.monotonic() - began
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    whole = time.monotonic() - began
    rounds = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    failed = [json.loads(line)["failures"] for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
    if any(failed):
        raise SystemExit(f"clients failed in {run_dir}: {failed}")
    seconds = [line["round_seconds"] for line in rounds]
    return {
        "until_round_1": first - seconds[0],
        "until_the_end_of_round_1": first,
        "a_round": statistics.median(seconds[2:]),
        "whole": whole,
    }


def measure(place: Path, name: str, overrides: list[str], clients: int, rounds: int, repeats: int) -> Any:
    """The medians of a run's repeats, and all of them."""
    overrides = [*overrides, f"num_clients={clients}", "clients_per_round=null", f"num_rounds={rounds}"]
    found = []
    for number in range(repeats):
        found.append(timed(place / f"{'-'.join(re.findall('[a-z_]+', name))}-{number}", overrides))
        print(name, {key: round(value, 3) for key, value in found[-1].items()}, flush=True)
    medians = {key: statistics.median(run[key] for run in found) for key in found[0]}
    return {
        "clients": clients,
        "rounds": rounds,
        "overrides": overrides,
        "median_seconds": {key: round(value, 4) for key, value in medians.items()},
        "a_client": round(medians["a_round"] / clients, 5),
        "repeats": [{key: round(value, 4) for key, value in run.items()} for run in found],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=40, help="in process and on Ray (%(default)s)")
    parser.add_argument("--nodes", type=int, default=4, help="clients on the SuperLink (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="%(default)s")
    parser.add_argument("--out", type=Path, help="write the result to this file, as JSON")
    arguments = parser.parse_args()
    engines = {
        "in_process": (["engine.mode=looped", "engine.workers=1"], arguments.clients, 12),
        "ray": (["engine=ray"], arguments.clients, 12),
        "ray, one client a chunk": (
            ["engine=ray", f"engine.chunks={arguments.clients}"],
            arguments.clients,
            12,
        ),
    }
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        place = Path(folder)
        measured = {name: measure(place, name, *more, arguments.repeats) for name, more in engines.items()}
        nodes, began = place / "federation", time.monotonic()
        federation.up(nodes, arguments.nodes)
        up = time.monotonic() - began
        try:
            overrides = ["engine=superlink", f"superlink.federation={nodes}"]
            found = measure(place, "superlink", overrides, arguments.nodes, 5, arguments.repeats)
        finally:
            federation.down(nodes)
        found["overrides"][:2] = ["engine=superlink", "superlink.federation=DIR"]
        measured["superlink"] = found | {"federation_up": round(up, 1)}
        machine = json.loads((place / "in_process-0" / "manifest.json").read_text())["hardware"]
    result = {"machine": machine, "load_before": round(load, 1), "work": WORK, "engines": measured}
    save(result, arguments.out)


if __name__ == "__main__":
    main()
