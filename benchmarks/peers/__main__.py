"""The same work in fedscale-local and its peers, whole rounds, interleaved, with the same timing boundary.

    python -m benchmarks.peers --work W0,W1,W2,W3 --peers flower,pfl,fedjax,naive,jax --out FILE.json

Each peer has an environment of its own (--environments, made at the first use); Flower and the plain loop run in this
one, as fedscale-local does. A round lasts from the end of the one before to its own end, with everything that the
framework does; evaluation is off everywhere. The first round, with start-up and compilation, is told apart: from the
launch of the command to its end. A process counts for the memory by its proportional set size, so that what processes
share counts once; the peak is that of one look a second. Passes are interleaved: each does every peer once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import gemm_peak, machine, save
from benchmarks.peers import work as works
from benchmarks.peers.torch_models import build
from fedscale_local import compose, experiment

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))
INSTALLED = {
    "pfl": ["pfl==0.6.0", "torch==2.13.0"],
    "fedjax": ["fedjax==0.0.17", "jax==0.10.2"],
    "jax": ["jax==0.10.2"],
}
"""What a peer's environment is made of."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
WITHOUT = {"fedjax": {"W3"}, "jax": {"W2", "W3"}}
"""Works that are not written for a peer; W2 takes minutes a round in a JAX scan on a CPU."""
AGREE = 0.1
"""Test losses after the last round may differ by this share of their median: batches and clients differ."""


def arrays(work: works.Work) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Data and initial parameters: each client has exactly local_steps batches, drawn from the training set."""
    config = compose.config([f"data={work.data}", f"model={work.model}", "partition=iid"])
    task = experiment.build(config).task
    dataset, examples = task.dataset, work.local_steps * work.batch_size
    chosen = np.random.default_rng(0).integers(len(dataset.y), size=work.num_clients * examples)
    data = {
        "x": task.inputs(dataset.x[torch.from_numpy(chosen)]).numpy(),
        "y": dataset.y.numpy()[chosen],
        "client": np.repeat(np.arange(work.num_clients), examples),
        "x_test": task.inputs(dataset.test_x[:2000]).numpy(),
        "y_test": dataset.test_y.numpy()[:2000],
    }
    named = task.layout.split(task.initial_params)
    return data, {name: value.numpy() for name, value in named.items()}


def gflop(work: works.Work, data: dict[str, np.ndarray]) -> float:
    """Products and convolutions of one round, forward and backward, by PyTorch's counter."""
    with FlopCounterMode(display=False) as counter:
        batch = torch.from_numpy(data["x"][: work.batch_size])
        build(work.model)(batch).sum().backward()
    return counter.get_total_flops() * work.clients_per_round * work.local_steps / 1e9


def python(peer: str, environments: Path) -> str:
    """The interpreter that has the peer; its environment is made if it is not there."""
    if peer not in INSTALLED:
        return sys.executable
    folder = environments / peer
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run(
            [folder / "bin" / "python", "-m", "pip", "install", "-q", *INSTALLED[peer]], check=True
        )
        (folder / "ready").touch()
    return str(folder / "bin" / "python")


def overrides(folder: Path, work: works.Work, run_dir: Path, scaling: str = "") -> list[str]:
    """What makes a run of fedscale-local of the work in `folder`; scaling: one of OURS.

    Only Local SGD takes the work's step size: a run that diverges is slower, as large numbers are looked at twice.
    """
    return [
        "data=arrays", f"data.path={folder / 'data.npz'}", "partition=natural", f"model={work.model}",
        f"num_clients={work.num_clients}", f"clients_per_round={work.clients_per_round}",
        f"num_rounds={work.num_rounds}", f"client.local_steps={work.local_steps}",
        f"client.batch_size={work.batch_size}", "eval_every=1000000", f"run_dir={run_dir}",
        *OURS[scaling], *([] if scaling else [f"client.step_size={work.step_size}"]),
    ]  # fmt: skip


def command(peer: str, interpreter: str, folder: Path, run_dir: Path) -> tuple[list[str], dict[str, str]]:
    """What starts a peer on the work in `folder`, and what it adds to the environment."""
    if peer.startswith("fedscale-local"):
        work = works.Work(**json.loads((folder / "work.json").read_text()))
        asked = overrides(folder, work, run_dir, peer.partition(" ")[2])
        return [interpreter, "-c", "from fedscale_local.cli import main; main()", "run", *asked], {}
    script = {"jax": "jax_loop", "naive": "naive"}.get(peer, f"{peer}_run")
    start = [interpreter]
    if peer == "pfl":
        start = [interpreter, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={CORES}"]
    threads = ONE_THREAD if peer in ("pfl", "flower") else {}
    return [*start, str(HERE / f"{script}.py"), str(folder)], {"PYTHONPATH": str(HERE), **threads}


OURS = {
    "": ["strategy=fedavg"],
    "adam": ["strategy=savic", "scaling=adam"],
    "oasis": ["strategy=savic", "scaling=oasis"],
}
"""Overrides of fedscale-local's own rows: Local SGD, and preconditioners with the step size that each brings."""


def memory(mark: str) -> float:
    """Proportional set size of all processes whose environment has the mark, in MiB."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes():
                rollup = (process / "smaps_rollup").read_text()
                total += int(rollup.split("\nPss:")[1].split()[0])
    return total / 1024


def measured(peer: str, environments: Path, folder: Path) -> dict[str, Any]:
    """One whole command: seconds of each round, of start-up with the first, peak memory, final test loss."""
    mark = f"PEER_MARK={uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as scratch:
        result, run_dir = Path(scratch, "result.json"), Path(scratch, "run")
        start, more = command(peer, python(peer, environments), folder, run_dir)
        name, value = mark.split("=")
        env = {**os.environ, **more, name: value, "PEER_RESULT": str(result)}
        with Path(scratch, "log").open("w+") as log:
            launched, peak = time.time(), 0.0
            process = subprocess.Popen(start, env=env, stdout=log, stderr=subprocess.STDOUT)
            while process.poll() is None:
                peak = max(peak, memory(mark))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
            if process.returncode:
                log.seek(0)
                raise SystemExit(f"{peer} failed with exit code {process.returncode}:\n{log.read()[-3000:]}")
        said = ours(run_dir, folder) if peer.startswith("fedscale-local") else json.loads(result.read_text())
    ends = [launched, *said["ends"]]
    lengths = np.diff(ends).tolist()
    return {"first": lengths[0], "rounds": lengths[1:], "mebibytes": peak, "test_loss": said["test_loss"]}


def ours(run_dir: Path, folder: Path) -> dict[str, Any]:
    """What a peer's script reports, from the run directory: ends of rounds, test loss."""
    timing = [json.loads(line) for line in (run_dir / "timing.jsonl").read_text().splitlines()]
    last = json.loads((run_dir / "rounds.jsonl").read_text().splitlines()[-1])
    return {"ends": [line["ended_at"] for line in timing], "test_loss": last["test_loss"]}


def summary(passes: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Over all passes: the median round and the range of each pass's own median, medians of the rest."""
    medians = [statistics.median(one["rounds"]) for one in passes]
    return {
        "round_seconds": statistics.median(medians),
        "least": min(medians),
        "most": max(medians),
        "first_round_seconds": statistics.median(one["first"] for one in passes),
        "mebibytes": max(one["mebibytes"] for one in passes),
        "test_loss": statistics.median(one["test_loss"] for one in passes),
    }


def table(name: str, rows: dict[str, dict[str, float]], gflop_round: float, peak: float) -> str:
    """One work's rows as Markdown; ratios say how many times longer than fedscale-local a peer takes."""
    own = rows["fedscale-local"]
    lines = [
        f"| {name} | a round, s (range) | ratio | share of the GEMM peak | first round ends after, s "
        "| ratio | memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for peer, row in rows.items():
        lines.append(
            f"| {peer} | {row['round_seconds']:.3f} ({row['least']:.3f} to {row['most']:.3f}) "
            f"| {row['round_seconds'] / own['round_seconds']:.2f} | {gflop_round / row['round_seconds'] / peak:.0%} "
            f"| {row['first_round_seconds']:.1f} | {row['first_round_seconds'] / own['first_round_seconds']:.2f} "
            f"| {row['mebibytes']:.0f} |"
        )
    return "\n".join(lines)


def agree(rows: dict[str, dict[str, float]]) -> None:
    """Do all plain rows end at about the same test loss? Else it was not the same work."""
    losses = {peer: row["test_loss"] for peer, row in rows.items() if " " not in peer}
    middle = statistics.median(losses.values())
    if any(abs(loss - middle) > AGREE * middle for loss in losses.values()):
        raise SystemExit(
            f"test losses differ by more than {AGREE:.0%}, so this is not the same work: {losses}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default=",".join(works.WORKS), help="%(default)s")
    parser.add_argument("--peers", default="flower,pfl,fedjax,naive,jax", help="%(default)s")
    parser.add_argument("--passes", type=int, default=5, help="%(default)s")
    parser.add_argument("--environments", type=Path, default=Path(".peers"), help="%(default)s")
    parser.add_argument("--scaled", action="store_true", help="fedscale-local with adam and oasis, too")
    parser.add_argument("--out", type=Path, help="write the result to this file, as JSON")
    arguments = parser.parse_args()
    own = ["fedscale-local", *(f"fedscale-local {name}" for name in OURS if name and arguments.scaled)]
    everything: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine()}
    for name in arguments.work.split(","):
        work = works.WORKS[name]
        peers = [*own, *(p for p in arguments.peers.split(",") if p and name not in WITHOUT.get(p, ()))]
        with tempfile.TemporaryDirectory() as folder:
            data, initial = arrays(work)
            works.save(work, Path(folder), data, initial)
            per_round = gflop(work, data)
            del data
            passes: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
            peaks = []
            for number in range(arguments.passes):
                peaks.append(gemm_peak())
                for peer in peers if number % 2 == 0 else reversed(peers):
                    passes[peer].append(measured(peer, arguments.environments, Path(folder)))
        rows = {peer: summary(own) for peer, own in passes.items()}
        agree(rows)
        peak = statistics.median(peaks)
        everything[name] = {"gflop": per_round, "gemm_gflops": peak, "rows": rows, "passes": passes}
        print(f"\n{per_round:.1f} GFLOP a round; GEMM peak {peak:.0f} GFLOP/s; {arguments.passes} passes\n")
        print(table(name, rows, per_round, peak), flush=True)
        save(everything, arguments.out)


if __name__ == "__main__":
    main()
