"""A round on one GPU, beside the plain loop that one writes by hand for the same GPU.

    python -m benchmarks.gpu --out benchmarks/results/gpu.json

W1: 1,000 clients a round, a perceptron 784-128-10.  W4: 32 clients a round, ResNet-18 with GroupNorm on 32x32 images.
Batches of 32, ten local steps of plain SGD, data of random numbers, all on the GPU before the first round. The plain
loop takes one client after the other, one module and torch.optim.SGD. Passes are interleaved; each is a whole run, its
figure the median over its rounds after the first two. `--small --device cpu` does next to nothing, anywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import gemm_peak, machine, save, wait
from fedscale_local import compose, lifecycle, reports
from fedscale_local.models import dense, resnet

CLASSES, STEP_SIZE, WARM = 10, 0.02, 2


@dataclass(frozen=True)
class Work:
    """Plain Local SGD; each client holds `batches` batches, and all clients take part in each round."""

    model: str
    shape: tuple[int, ...]
    clients: int
    local_steps: int = 10
    batch_size: int = 32
    batches: int = 2
    rounds: int = 10

    @property
    def size(self) -> int:
        """Examples of a client."""
        return self.batches * self.batch_size

    def module(self) -> nn.Module:
        make: Callable[..., nn.Module] = getattr(dense if self.model == "mlp" else resnet, self.model)
        return make(self.shape, CLASSES)


WORKS = {
    "W1": Work("mlp", (1, 28, 28), 1000),
    "W4": Work("resnet18", (3, 32, 32), 32, batches=10, rounds=6),
}
SMALL = {
    "W1": replace(WORKS["W1"], clients=6, local_steps=2, batch_size=4, rounds=4),
    "W4": Work("resnet8", (3, 8, 8), 4, local_steps=2, batch_size=4, rounds=4),
}
OURS = {
    "fedscale-local": [],
    "fedscale-local, looped": ["engine.mode=looped"],
    "fedscale-local, bfloat16": ["engine.precision=bfloat16"],
}
PLAIN = "plain loop"


def arrays(work: Work) -> dict[str, np.ndarray]:
    """Examples of random numbers whose labels a linear map of them decides, so that there is something to learn."""
    generator, count = np.random.default_rng(0), work.clients * work.size
    x = generator.standard_normal((count, *work.shape), dtype=np.float32)
    y = (x.reshape(count, -1) @ generator.standard_normal((x[0].size, CLASSES), dtype=np.float32)).argmax(1)
    owner = np.repeat(np.arange(work.clients), work.size)
    return {"x": x, "y": y, "client": owner, "x_test": x[:200], "y_test": y[:200]}


def ours(work: Work, data: Path, device: str, more: list[str]) -> tuple[list[float], float, dict[str, Any]]:
    """Seconds of each round, the last test loss, and what the engine chose."""
    with tempfile.TemporaryDirectory() as folder, patch.object(reports, "write", lambda run_dir: run_dir):
        run_dir = Path(folder, "run")
        overrides = [
            "data=arrays", f"data.path={data}", "partition=natural", "num_clients=null", "clients_per_round=null",
            f"model={work.model}", "strategy=fedavg", f"client.local_steps={work.local_steps}",
            f"client.batch_size={work.batch_size}", f"client.step_size={STEP_SIZE}", f"num_rounds={work.rounds}",
            "eval_every=1000000", "eval_clients=false", "checkpoint_every=0", "engine.workers=1",
            f"engine.device={device}", f"run_dir={run_dir}", *more,
        ]  # fmt: skip
        lifecycle.run(compose.config(overrides))
        ends = [json.loads(line)["ended_at"] for line in (run_dir / "timing.jsonl").read_text().splitlines()]
        last = json.loads((run_dir / "rounds.jsonl").read_text().splitlines()[-1])
        chosen: dict[str, Any] = json.loads((run_dir / "manifest.json").read_text())["engine"]
        return np.diff(ends).tolist(), last["test_loss"], chosen


def plain(work: Work, x: Tensor, y: Tensor) -> tuple[list[float], float]:
    """Seconds of each round, and the last test loss."""
    torch.manual_seed(0)
    module = work.module().to(x.device)
    server = {name: value.clone() for name, value in module.state_dict().items()}
    ends = []
    for _ in range(work.rounds):
        mean = {name: torch.zeros_like(value) for name, value in server.items()}
        for client in range(work.clients):
            module.load_state_dict(server)
            optimizer = torch.optim.SGD(module.parameters(), lr=STEP_SIZE)
            drawn = [torch.randperm(work.size) for _ in range(-(-work.local_steps // work.batches))]
            batches = (client * work.size + torch.cat(drawn)).to(x.device).split(work.batch_size)
            for batch in batches[: work.local_steps]:
                optimizer.zero_grad()
                F.cross_entropy(module(x[batch]), y[batch]).backward()
                optimizer.step()
            for name, value in module.state_dict().items():
                mean[name] += value / work.clients
        server = mean
        wait(x.device)
        ends.append(time.time())
    module.load_state_dict(server)
    with torch.no_grad():
        return np.diff(ends).tolist(), float(F.cross_entropy(module(x[:200]), y[:200]))


def gflop(work: Work) -> float:
    """Products and convolutions of one round, forward and backward, by PyTorch's counter."""
    module, x = work.module().to("meta"), torch.zeros(work.batch_size, *work.shape, device="meta")
    with FlopCounterMode(display=False) as counter:
        module(x).sum().backward()
    return counter.get_total_flops() * work.clients * work.local_steps / 1e9


def measured(work: Work, data: Path, device: torch.device, passes: int) -> dict[str, Any]:
    """A row for each: the median round and the range of each pass's own, the ratio to the plain loop, the test loss."""
    with np.load(data) as found:
        x, y = (torch.from_numpy(found[name]).to(device) for name in ("x", "y"))
    seen: dict[str, list[float]] = {name: [] for name in (*OURS, PLAIN)}
    losses: dict[str, float] = {}
    chosen: dict[str, Any] = {}
    for number in range(passes):
        for name in seen if number % 2 == 0 else reversed(seen):
            if name == PLAIN:
                seconds, losses[name] = plain(work, x, y)
            else:
                seconds, losses[name], chosen[name] = ours(work, data, device.type, OURS[name])
            seen[name].append(statistics.median(seconds[WARM - 1 :]))
    own = statistics.median(seen[PLAIN])
    return {
        name: {
            "round_seconds": (middle := statistics.median(values)),
            "least": min(values),
            "most": max(values),
            "ratio": own / middle,
            "test_loss": losses[name],
            "engine": chosen.get(name),
        }
        for name, values in seen.items()
    }


def table(name: str, result: dict[str, Any]) -> str:
    """One work's rows as Markdown; the ratio says how many times faster than the plain loop."""
    lines = [
        f"| {name} | a round, s (range) | ratio | share of the GEMM peak | test loss |",
        "|---|---|---|---|---|",
    ]
    for row, told in result["rows"].items():
        share = result["gflop"] / told["round_seconds"] / result["gemm_gflops"]["float32"]
        lines.append(
            f"| {row} | {told['round_seconds']:.4f} ({told['least']:.4f} to {told['most']:.4f}) "
            f"| {told['ratio']:.2f} | {share:.1%} | {told['test_loss']:.3f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default=",".join(WORKS), help="%(default)s")
    parser.add_argument("--passes", type=int, default=5, help="%(default)s")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="%(default)s")
    parser.add_argument("--small", action="store_true", help="next to no work, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the result to this file, as JSON")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            f"--device cuda: torch {torch.__version__} finds no GPU; give --small --device cpu",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)  # as the engine; a GPU needs no more
    everything: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine()}
    everything["gpu"] = torch.cuda.get_device_name() if device.type == "cuda" else None
    size = 256 if arguments.small else 8192
    for name in arguments.work.split(","):
        work = (SMALL if arguments.small else WORKS)[name]
        peaks = {
            str(dtype).removeprefix("torch."): gemm_peak(size, device, dtype)
            for dtype in (torch.float32, torch.bfloat16)
        }
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder, "data.npz")
            np.savez(data, **arrays(work))
            rows = measured(work, data, device, arguments.passes)
        everything[name] = {"gflop": gflop(work), "gemm_gflops": peaks, "rows": rows}
        print(f"\n{everything['gpu'] or 'no GPU'}; {arguments.passes} passes\n")
        print(table(name, everything[name]), flush=True)
        save(everything, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
