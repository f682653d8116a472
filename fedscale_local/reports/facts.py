"""What one run amounts to: its method in words, its best and last numbers, its costs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedscale_local.reports import quantities
from fedscale_local.run_dir import Run

RULES = {
    "identity": "no scaling",
    "adagrad": "AdaGrad",
    "rmsprop": "RMSProp",
    "adam": "Adam",
    "oasis": "OASIS",
    "adahessian": "AdaHessian",
    "sophia": "Sophia",
}
STATISTICS = {
    "gradient": "mean gradients",
    "hutchinson": "Hutchinson's estimate of the curvature",
    "gauss_newton": "a Gauss-Newton estimate of the curvature",
    "displacement": "the clients' displacement",
}
TIMING_PARTS = ("configure", "clients", "aggregate", "evaluate")


# ---------------------------------------------------------------- the run in words


def _section(run: Run, name: str) -> dict[str, Any]:
    section = run.config.get(name)
    return section if isinstance(section, dict) else {}


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def method_name(run: Run) -> str:
    """A short name: "SAVIC with Adam scaling", "FedAvg", or the class of a Flower strategy."""
    strategy = _section(run, "strategy")
    name = str(strategy.get("name", "unknown method"))
    if "_target_" in strategy:
        return str(strategy["_target_"]).rsplit(".", 1)[-1]
    rule = str(_section(run, "scaling").get("rule", "identity"))
    if name == "savic":
        scaled = f"{RULES.get(rule, rule)} scaling" if rule != "identity" else "no scaling"
        return f"SAVIC with {scaled}"
    return {"fedavg": "FedAvg (Local SGD)"}.get(name, name)


def method_words(run: Run) -> str:
    """The method in one or two sentences, from the resolved configuration."""
    parts = (
        _client_words(run),
        _local_words(run),
        _scaling_words(run),
        _server_words(run),
        _attack_words(run),
    )
    return " ".join(part for part in parts if part)


def _attack_words(run: Run) -> str:
    attack = _section(run, "attack")
    name, share = str(attack.get("name", "none")), attack.get("share")
    if name == "none" or not isinstance(share, int | float):
        return ""
    return f"{share:.0%} of the clients are hostile ({name.replace('_', ' ')})."


def _client_words(run: Run) -> str:
    client = _section(run, "client")
    steps = client.get("local_steps")
    count, unit = (steps, "step") if steps is not None else (client.get("local_epochs"), "epoch")
    if count is None:
        return ""
    words = f"Each sampled client takes {count} local {unit}{'' if count == 1 else 's'}"
    if "step_size" in client:
        words += f" of size {_number(client['step_size'])}"
    batch = client.get("batch_size")
    if batch is not None:
        words += " on its whole shard" if batch == "full" else f" on batches of {batch}"
    extras = []
    if client.get("momentum"):
        every = client.get("momentum_every", 1)
        kind = client.get("momentum_buffer", "reset") + (f" every {every} rounds" if every > 1 else "")
        extras.append(f"momentum {_number(client['momentum'])} ({kind})")
    if client.get("weight_decay"):
        extras.append(f"weight decay {_number(client['weight_decay'])}")
    return words + (f", with {' and '.join(extras)}" if extras else "") + "."


def _scaling_words(run: Run) -> str:
    scaling = _section(run, "scaling")
    rule = str(scaling.get("rule", "identity"))
    if rule == "identity":
        return ""
    if scaling.get("scope") == "local":
        words = f"Each client scales its steps by its own {RULES.get(rule, rule)} preconditioner"
        refresh = f"refreshed every {scaling.get('local_refresh', 'round')}"
    else:
        words = f"Steps are scaled by one {RULES.get(rule, rule)} preconditioner that all clients share"
        every = scaling.get("refresh_every", 1)
        refresh = "refreshed every round" if every == 1 else f"refreshed every {every} rounds"
    statistic = str(scaling.get("statistic", "gradient"))
    numbers = [f"{key} {_number(scaling[key])}" for key in ("beta", "alpha") if scaling.get(key) is not None]
    return f"{words}, {refresh} from {STATISTICS.get(statistic, statistic)} ({', '.join(numbers)})."


def _local_words(run: Run) -> str:
    """What clients do beside their steps, by the name of the rule."""
    local = _section(run, "strategy").get("local")
    if not isinstance(local, dict) or local.get("rule", "plain") == "plain":
        return ""
    return f"Their local rule is {local['rule']}{_options(local, 'rule')}."


def _options(section: dict[str, Any], *left_out: str) -> str:
    """ " (beta1 0.9, decay 0)", or nothing."""
    words = [
        f"{key.replace('_', ' ')} {_number(value)}" for key, value in section.items() if key not in left_out
    ]
    return f" ({', '.join(words)})" if words else ""


def _server_words(run: Run) -> str:
    strategy = _section(run, "strategy")
    if "_target_" in strategy:
        named = [
            f"{k}={v}" for k, v in strategy.items() if k not in ("_target_", "name", "weighting", "mixing")
        ]
        return f"The server runs {strategy['_target_']}({', '.join(named)})."
    if strategy.get("mixing") == "preconditioned":
        return "The server mixes their models, each coordinate weighted by the clients' preconditioners."
    if "weighting" not in strategy:
        return ""
    how = "weighted by their numbers of examples" if strategy["weighting"] == "examples" else "all alike"
    combine, words = strategy.get("combine"), f"The server averages their models, {how}."
    if isinstance(combine, dict) and combine.get("rule", "mean") != "mean":
        rule = str(combine["rule"]).replace("_", " ")
        words = f"The server makes one model of theirs by {rule}{_options(combine, 'rule')}."
    server = strategy.get("server", "plain")
    if server != "plain" or strategy.get("eta", 1.0) != 1.0:
        options = _options(strategy, "name", "weighting", "mixing", "local", "combine", "server")
        words += f" Then it takes a step of its own, {server}{options}."
    return words


def privacy_words(run: Run) -> str:
    """What an observer can tell of one client after the last round; "" without privacy."""
    privacy = run.manifest.get("privacy")
    if not isinstance(privacy, dict) or not run.rounds:
        return ""
    who = "the server" if privacy.get("kind") == "central" else "each client"
    epsilon = quantities.epsilon_text(run.rounds[-1].get("epsilon"))
    return (
        f"epsilon {epsilon} at delta {_number(privacy.get('delta'))} after round"
        f" {run.rounds[-1]['round']}, {privacy.get('neighbours')}: {who} adds noise of multiplier"
        f" {_number(privacy.get('noise_multiplier'))}, counted by {str(privacy.get('accountant')).upper()}"
    )


def data_words(runs: Sequence[Run]) -> str:
    """Data and partition of runs that share them: "fashion_mnist_12k, 12,000 examples, dirichlet (alpha 0.3)"."""
    run = runs[0]
    words = [str(_section(run, "data").get("name", "unknown data"))]
    totals = {int(sizes.sum()) for run in runs if (sizes := shard_sizes(run)) is not None}
    if totals:
        words.append(f"{_span(totals)} training examples")
    partition = _section(run, "partition")
    if "scheme" in partition:
        options = [f"{k.replace('_', ' ')} {_number(v)}" for k, v in _relevant(partition)]
        words.append(f"{partition['scheme']} partition" + (f" ({', '.join(options)})" if options else ""))
    return ", ".join(words)


SCHEME_OPTIONS = {
    "dirichlet": ("alpha", "min_examples"),
    "main_class": ("share",),
    "pathological": ("classes_per_client",),
    "by_size": ("sigma",),
}


def _relevant(partition: dict[str, Any]) -> list[tuple[str, Any]]:
    keys = SCHEME_OPTIONS.get(str(partition["scheme"]), ())
    return [(key, partition[key]) for key in keys if partition.get(key)]


def _span(counts: Collection[int]) -> str:
    """
    >>> _span([1200]), _span([1200, 900])
    ('1,200', '900 to 1,200')
    """
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def clients_words(runs: Sequence[Run]) -> str:
    """ "200 clients, 20 a round", as far as these runs say, which share the configuration of both."""
    found = [shard_sizes(run) for run in runs]
    totals = [
        len(sizes) if sizes is not None else run.config.get("num_clients")
        for run, sizes in zip(runs, found, strict=True)
    ]
    known = [total for total in totals if isinstance(total, int)]
    per_round = runs[0].config.get("clients_per_round")
    words = f"{_span(known)} clients" if known else "all clients of the data"
    return words + (f", {per_round:,} a round" if isinstance(per_round, int) else ", all in every round")


def engine_words(run: Run) -> str:
    """Engine, mode and workers, as the manifest recorded them."""
    engine = run.manifest.get("engine")
    if not isinstance(engine, dict):
        return str(engine or "unknown engine")
    words = [str(engine.get("name", "unknown")), str(engine.get("mode") or "")]
    workers = engine.get("workers")
    words.append(f"{workers} worker{'' if workers == 1 else 's'}" if workers is not None else "")
    return ", ".join(word for word in words if word)


# ---------------------------------------------------------------- the numbers


Measured = tuple[float, int] | None


@dataclass(frozen=True)
class Summary:
    """The numbers of one run; bytes and seconds are totals, a loss or an accuracy is (value, its round)."""

    num_rounds: int
    planned_rounds: int | None
    status: str
    train_loss: Measured
    test_loss: Measured
    test_accuracy: Measured
    best_loss: Measured
    best_accuracy: Measured
    bytes_up: float
    bytes_down: float
    seconds: float | None
    num_failures: int


def summary(run: Run) -> Summary:
    """The headline numbers; a loss or an accuracy is the last that there is, which a diverged run has early."""
    planned = run.config.get("num_rounds")
    return Summary(
        num_rounds=len(run.rounds),
        planned_rounds=planned if isinstance(planned, int) else None,
        status=str(run.manifest.get("exit", "unknown")),
        train_loss=_last(run, "train_loss"),
        test_loss=_last(run, "test_loss"),
        test_accuracy=_last(run, "test_accuracy"),
        best_loss=_best(run, "test_loss", min),
        best_accuracy=_best(run, "test_accuracy", max),
        bytes_up=sum(record["bytes_up"] or 0 for record in run.rounds),
        bytes_down=sum(record["bytes_down"] or 0 for record in run.rounds),
        seconds=_seconds(run),
        num_failures=sum(len(record.get("failures") or []) for record in run.rounds),
    )


def _values(run: Run, key: str) -> list[tuple[float, int]]:
    return [(record[key], record["round"]) for record in run.rounds if record[key] is not None]


def _last(run: Run, key: str) -> Measured:
    values = _values(run, key)
    return values[-1] if values else None


def _best(run: Run, key: str, choose: Any) -> Measured:
    return choose(_values(run, key), key=lambda pair: pair[0], default=None)


def _seconds(run: Run) -> float | None:
    spent = [record.get("round_seconds") for record in run.timing]
    known = [float(seconds) for seconds in spent if isinstance(seconds, int | float)]
    if known:
        return math.fsum(known)
    try:
        ends = [datetime.fromisoformat(str(run.manifest[key])) for key in ("started", "finished")]
        return (ends[1] - ends[0]).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def seconds_of_parts(run: Run) -> dict[str, float]:
    """Where the time of the rounds went: part -> seconds in total, "other" for what no part accounts for."""
    parts = {}
    for part in TIMING_PARTS:
        spent = [record.get(f"{part}_seconds") for record in run.timing]
        parts[part] = math.fsum(float(s) for s in spent if isinstance(s, int | float))
    total = _seconds(run) if run.timing else None
    parts["other"] = max((total or 0.0) - math.fsum(parts.values()), 0.0)
    return parts if total else {}


def shard_sizes(run: Run) -> np.ndarray | None:
    """Training examples of each client (clients,), or None where the run does not say."""
    if run.partition is None:
        return None
    counts = run.partition.get("counts")
    if counts is None:
        return np.asarray(run.partition["sizes"], dtype=np.int64)
    return np.asarray([sum(row) for row in counts], dtype=np.int64)


def partition_words(run: Run) -> str:
    """Sizes of the shards, and how mixed they are, in one or two sentences."""
    sizes = shard_sizes(run)
    if sizes is None or not sizes.size:
        return ""
    held = sizes[sizes > 0]
    if not held.size:
        return "No client holds an example."
    words = (
        f"A client holds {held.min():,} to {held.max():,} examples, {np.median(held):,.0f} in the middle"
        f" (mean {held.mean():,.1f})."
    )
    empty = int((sizes == 0).sum())
    if empty:
        words += f" {empty:,} client{'' if empty == 1 else 's'} hold{'s' if empty == 1 else ''} none."
    assert run.partition is not None
    if "counts" in run.partition and len(run.partition["counts"][0]) > 1:
        shares = np.asarray(run.partition["counts"], dtype=float)[sizes > 0] / held[:, None]
        classes = (shares > 0).sum(1)
        words += (
            f" On average {shares.max(1).mean():.0%} of a shard come from its largest class;"
            f" a shard has {classes.mean():.1f} of {shares.shape[1]} classes."
        )
    return words


def measured_words(run: Run, final: Measured, best: Measured, form: Callable[[float], str]) -> str:
    """Where a number is from, if not from the last round, and the best one: "in round 8, best 0.41 in round 6"."""
    words = []
    if final is not None and final[1] != run.rounds[-1]["round"]:
        words.append(f"in round {final[1]}")
    if best is not None:
        words.append(f"best {form(best[0])} in round {best[1]}")
    return ", ".join(words)


def notes(run: Run) -> list[str]:
    """What a reader of the numbers should know, the most important first."""
    status = str(run.manifest.get("exit", ""))
    found = []
    if not run.rounds:
        found.append("No round has finished yet.")
    if status.split(":")[0] in ("failed", "interrupted"):
        found.append(f"This run ended early ({status}).")
    lost = [r["round"] for r in run.rounds if r["test_accuracy"] is not None and r["test_loss"] is None]
    if lost:
        rounds = f"{len(lost):,} round{'' if len(lost) == 1 else 's'}"
        found.append(f"The test loss was not finite in {rounds}, first in round {lost[0]}.")
    privacy = run.manifest.get("privacy")
    found += privacy.get("warnings", []) if isinstance(privacy, dict) else []
    return [*found, *run.notes, *(str(note) for note in [run.manifest.get("data_note")] if note)]


def failure_counts(run: Run) -> list[tuple[str, int]]:
    """(reason, how often), most frequent first."""
    reasons = (str(f.get("reason", "unknown")) for r in run.rounds for f in r.get("failures") or [])
    return Counter(reasons).most_common()


def final_words(file: Path) -> str:
    """The last evaluation in words."""
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    kinds = {"test_accuracy": "test accuracy", "test_loss": "test loss", "train_loss": "train loss"}
    for record in reversed(records):
        known = [f"{words} {record[key]:.4f}" for key, words in kinds.items() if record.get(key) is not None]
        if known:
            return f"{', '.join(known)} after round {record['round']}"
    return "no round was finished"
