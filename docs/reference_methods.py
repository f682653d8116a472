"""Writes docs/reference-methods.md: what the docstrings of the methods' parts and the files of conf/ say, by method.

    python docs/reference_methods.py          (from the root of the repository)

Everything on that page stands in the code once: recurrence, source and departures at the function that computes it,
what a combination is at the head of its file in conf/strategy/, traffic and memory in the rule's own lists of vectors.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedscale_local import compose, local_rules, robust, scaling, server_rules
from fedscale_local.config import from_container
from fedscale_local.config_strategies import Strategy
from fedscale_local.instantiate import locate
from fedscale_local.local_rule import LocalRule, Setting
from fedscale_local.local_rules.adam import BETWEEN
from fedscale_local.server_step import mix
from fedscale_local.vector import Layout
from strategies import savic

PAGE = Path(__file__).with_name("reference-methods.md")
HEAD = """# The methods, one by one

Made by `docs/reference_methods.py` from the code; a test says that it still agrees. Every method is a choice of
`strategy`, a file of its name in `conf/strategy/`, and three parts in the code: what clients do
(`fedscale_local/local_rules/`), how their models become one (`fedscale_local/robust/`), how the server moves
(`fedscale_local/server_rules/`). A part that is not mentioned is FedAvg's. Each is held against a slow twin in NumPy by
`tests/test_gauntlet.py`. Which to take is another page: [how to choose a method](how-to-choose-a-method.md).

Symbols: x is the server's model, v a client's, g the gradient of one mini-batch at v, w_m the clients' weights, which
sum to one; S of N clients take part and take K local steps; Delta = combined - x is what the server is offered. All
operations are coordinate by coordinate. *Traffic* is what one client sends and receives in a round, in multiples of
the model's d numbers, single numbers left out. Where a paper's text could not be checked word for word, the recurrence
here is the definition.
"""
CLIENTS, COMBINING, SERVER = "Clients", "Combining", "Server"


def head(group: str, name: str) -> tuple[str, str]:
    """The comments at the top of a choice's file: its description, and what else they say."""
    lines = (compose.FOLDER / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comments = [line[1:].strip() for line in lines[:end] if not line.startswith("# @package")]
    return comments[0], text("\n".join(comments[1:]))


def text(words: str) -> str:
    """A docstring as Markdown: without its examples, its marks in bold and in paragraphs of their own."""
    words = re.sub(r",? \(d,\)", "", words.partition("\n>>>")[0].rstrip())
    marks = r"\n*^(Source|Departures|Between rounds): "
    return re.sub(marks, r"\n\n**\1**: ", words, flags=re.MULTILINE).strip()


def doc(of: Any) -> str:
    """The docstring of a function or a module, so."""
    return text(inspect.getdoc(of) or "")


def parts(config: Strategy) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The functions that a strategy is made of; those that are FedAvg's only for what is nothing else."""
    found = [
        (CLIENTS, "plain", config.local.rule, local_rules.RULES),
        (COMBINING, "mean", config.combine.rule, robust.RULES),
        (SERVER, "plain", config.server, server_rules.RULES),
    ]
    own = [part for part in found if part[2] != part[1]]
    for title, _, rule, table in own or found:
        yield title, table[rule] if rule in table else locate(config.local.target)  # a rule of somebody else
        if rule == "adam" and title == CLIENTS:
            yield "", BETWEEN[getattr(config.local, "moments")]  # noqa: B009


def traffic(rule: LocalRule, layout: Layout) -> tuple[float, float]:
    """(up, down) of a client and round, in multiples of d, from what the rule sends and shares."""
    every = {name: shared.every for name, shared in rule.shared.items()}
    size = {name: shared.size(layout) / layout.size for name, shared in rule.shared.items()}
    up = 1 + sum(size.get(name, 1) / every.get(name, 1) for name in rule.sends) + rule.wants_mean_gradient
    return up, 1 + sum(size[name] / every[name] for name in rule.shared)


def settled(name: str) -> tuple[Strategy, float, LocalRule]:
    """A choice's section, step size and local rule."""
    config = from_container(compose.compose([f"strategy={name}"]))
    assert isinstance(config.strategy, Strategy)
    return config.strategy, config.client.step_size, local_rules.make(config.strategy.local, SETTING)


SETTING = Setting(Layout(("weight", "bias"), ((1000, 1000), (1000,))), step_size=0.1)
"""A model that is large enough for single numbers to vanish beside it."""


def keys(config: Strategy, step_size: float) -> str:
    """The values that this choice sets, but for those that are FedAvg's."""
    plain = {"weighting": "examples", "mixing": "mean", "server": "plain", "eta": 1.0}
    values = {k: v for k, v in config.model_dump().items() if k != "name" and plain.get(k) != v}
    flat = {f"strategy.{k}": v for k, v in values.items() if not isinstance(v, dict)}
    for part, plain_rule in (("local", "plain"), ("combine", "mean")):
        if values[part]["rule"] != plain_rule:
            flat |= {f"strategy.{part}.{k}": v for k, v in values[part].items()}
    return " · ".join(f"`{k}={v}`" for k, v in (flat | {"client.step_size": step_size}).items())


def method(name: str) -> str:
    """One entry."""
    summary, more = head("strategy", name)
    config, step_size, rule = settled(name)
    lines = [f"## {name}", summary[0].upper() + summary[1:] + ".", more]
    for title, part in parts(config):
        lines += [f"**{title}**: {doc(part)}" if title else doc(part)]
    up, down = traffic(rule, SETTING.layout)
    kept = sum(size(SETTING.layout) for size in rule.keeps.values()) / SETTING.layout.size
    lines += [f"**Traffic**: {up:.3g} up, {down:.3g} down. {memory(kept)}"]
    return "\n\n".join(
        filter(None, [*lines, told(f"**Defaults**: `strategy={name}` is {keys(config, step_size)}")])
    )


def told(line: str) -> str:
    return textwrap.fill(line, 120, break_long_words=False, break_on_hyphens=False)


def memory(kept: float) -> str:
    if not kept:
        return "Clients keep nothing from round to round."
    return f"Each client keeps {kept:.2g} d numbers from round to round."


SAVIC_TRAFFIC = """**Traffic**:

| choice | up | down |
|---|---|---|
| `scaling.scope=global` | 2 | 2 |
| `scaling.refresh_every=6` | 1.17 | 1.17 |
| `scaling.statistic=displacement` | 1 | 1; 2 for a client that missed the last round |
| `scaling.scope=local` | 1 | 1; the client keeps its D |
| `strategy.mixing=preconditioned` | 2 | 1; the client keeps its D |"""


SCALINGS = """The memory of each scaling, with its beta_t and in one table, is part of
[the algorithm, line by line](explanation-algorithm.md#memories); t counts refreshes of D."""


def scaled(name: str) -> str:
    """One scaling."""
    summary, more = head("scaling", name)
    config = from_container(compose.compose([f"scaling={name}"]))
    rule = scaling.RULES[name]
    refresh = doc(rule.weights) if rule is not None else ""
    chosen = ("statistic", "alpha", "floor", "beta", "rho")
    values = {f"scaling.{key}": getattr(config.scaling, key) for key in chosen if rule is not None}
    values |= {"client.step_size": config.client.step_size}
    values_told = " · ".join(f"`{key}={value}`" for key, value in values.items() if value is not None)
    lines = [f"### scaling={name}", summary[0].upper() + summary[1:] + ".", refresh, more]
    return "\n\n".join(filter(None, [*lines, told(f"**Defaults**: {values_told}")]))


def page() -> str:
    """The whole page."""
    groups = compose.groups()
    names = [name for name in groups["strategy"].choices if name not in ("savic", "flower")]
    first = ["## savic", doc(savic), SAVIC_TRAFFIC, f"**Mixing**: {doc(mix)}"]
    summary, more = head("strategy", "flower")
    last = ["## flower", summary[0].upper() + summary[1:] + ".", more]
    scalings = [scaled(name) for name in groups["scaling"].choices]
    names.sort(key=lambda name: name != "fedavg")  # the others are told by what they change of it
    return (
        "\n\n".join([HEAD.rstrip(), *first, SCALINGS, *scalings, *map(method, names), *filter(None, last)])
        + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
