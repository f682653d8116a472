"""The configuration: defaults, composition, precedence, one string that carries it, what wrong keys are told."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest

from fedscale_local import compose
from fedscale_local.config import (
    Config,
    from_container,
    from_json,
    resolve_run_dir,
    to_container,
    to_json,
)
from fedscale_local.config_strategies import FlowerStrategy
from fedscale_local.errors import ConfigError, RunDirError

NEEDS = {
    ("client", "custom"): ["client._target_=my_package.app", "strategy=flower"],
    ("data", "arrays"): ["data.path=mine.npz"],
    ("model", "custom"): ["model._target_=torch.nn.Identity"],
}
CHOICES = [
    (group, choice)
    for group, entry in compose.groups().items()
    for choice in entry.choices
    if group != "experiment"
]
EXPERIMENTS = list(compose.groups()["experiment"].choices)


def leaves(container: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in container.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return found


DEFAULT = to_container(compose.config())
DEFAULT_KEYS = leaves(DEFAULT)


def test_defaults() -> None:
    config = compose.config()
    assert (config.data.name, config.model.name, config.model.hidden) == ("fashion_mnist_12k", "mlp", (128,))  # type: ignore[union-attr]
    assert (config.partition.scheme, config.partition.alpha) == ("dirichlet", 0.3)  # type: ignore[union-attr]
    assert (config.strategy.name, config.scaling.rule) == ("savic", "adam")
    assert (config.num_clients, config.clients_per_round) == (200, 20)
    assert (config.client.local_steps, config.client.batch_size) == (10, 32)
    assert (config.seed, config.dtype, config.run_dir, config.eval_every) == (0, "float32", None, 1)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_survives_json(group: str, choice: str) -> None:
    config = compose.config([f"{group}={choice}", *NEEDS.get((group, choice), [])])
    text = to_json(config)
    assert from_json(text) == config
    assert to_json(from_json(text)) == text
    section = getattr(config, group)
    if group not in ("client", "model", "sending"):  # the file is called as what it chooses
        assert choice in (
            getattr(section, "name", None),
            getattr(section, "scheme", None),
            getattr(section, "rule", None),
        )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_yields_to_overrides(name: str) -> None:
    one = [f"experiment={name}", "study=null"]
    compose.config(one)
    config = compose.config([*one, "num_rounds=3", "client.step_size=0.5"])
    assert (config.num_rounds, config.client.step_size) == (3, 0.5)
    if compose.sweeps_by_itself([f"experiment={name}"]):
        for job in compose.sweep([f"experiment={name}"]).jobs:
            compose.config(job)


@pytest.mark.parametrize("rule", compose.groups()["scaling"].choices)
def test_there_is_an_experiment_for_each_scaling_rule(rule: str) -> None:
    assert compose.config([f"experiment=scaling_{rule}"]).scaling.rule == rule


def test_every_choice_is_described_in_one_line() -> None:
    for group in compose.groups().values():
        assert group.description and group.choices
        assert all(len(text) > 8 for text in group.choices.values()), group


def test_a_strategy_brings_its_scaling_and_the_command_line_wins() -> None:
    assert compose.config(["strategy=fedavg"]).scaling.rule == "identity"
    assert compose.config(["strategy=flower"]).scaling.rule == "identity"
    local = compose.config(["strategy=fedavg", "scaling=adagrad", "scaling.scope=local"])
    assert local.scaling.rule == "adagrad"


def test_data_with_clients_of_its_own_brings_partition_and_model_and_the_command_line_wins() -> None:
    config = compose.config(["data=shakespeare"])
    assert (config.partition.scheme, config.num_clients, config.model.name) == ("natural", None, "char_gru")
    config = compose.config(["data=shakespeare", "model=char_transformer", "num_clients=50"])
    assert (config.partition.scheme, config.num_clients, config.model.name) == (
        "natural",
        50,
        "char_transformer",
    )
    config = compose.config(["data=quadratic", "partition=iid"])
    assert (config.partition.scheme, config.num_clients) == ("iid", 200)


def test_groups_of_an_experiment_may_be_chosen_with_or_without_plus() -> None:
    assert compose.config(["+experiment=quickstart"]) == compose.config(["experiment=quickstart"])


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_flower_strategy_by_its_import_path_takes_any_arguments(plus: str) -> None:
    target = "strategy._target_=flwr.serverapp.strategy.FedMedian"
    config = compose.config(["strategy=flower", target, f"{plus}strategy.fraction_train=0.5"])
    assert isinstance(config.strategy, FlowerStrategy)
    assert config.strategy.target == "flwr.serverapp.strategy.FedMedian"
    assert config.strategy.arguments == {"fraction_train": 0.5}
    assert from_json(to_json(config)) == config
    assert compose.config([target, f"{plus}strategy.fraction_train=0.5"]) == config


def test_a_nested_target_arrives_whole() -> None:
    config = compose.config(
        [
            "strategy._target_=a.Wrapper",
            "strategy.noise=1",
            "strategy.strategy={_target_: a.Inner, beta: 0.1}",
        ]
    )
    assert isinstance(config.strategy, FlowerStrategy)
    assert config.strategy.arguments == {"noise": 1, "strategy": {"_target_": "a.Inner", "beta": 0.1}}
    assert from_json(to_json(config)) == config


def test_a_model_by_its_import_path() -> None:
    config = compose.config(["model._target_=my.pkg.Net", "model.widths=[3,4]"])
    assert to_container(config)["model"] == {"_target_": "my.pkg.Net", "name": "custom", "widths": [3, 4]}


def test_frozen() -> None:
    config = compose.config()
    with pytest.raises(pydantic.ValidationError):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("key", DEFAULT_KEYS)
def test_each_key_refuses_nonsense_and_names_itself(key: str) -> None:
    container = copy.deepcopy(DEFAULT)
    *path, last = key.split(".")
    section = container
    for part in path:
        section = section[part]
    section[last] = {"nonsense": 1}
    with pytest.raises(ConfigError) as refused:
        from_container(container)
    assert str(refused.value).startswith(f"{key}={{'nonsense': 1}}: expected ")
    assert "; set " in str(refused.value)


@pytest.mark.parametrize(
    "key", [k for k in DEFAULT_KEYS if k not in ("strategy.name", "data.name", "partition.scheme")]
)
def test_each_key_is_needed(key: str) -> None:
    container = copy.deepcopy(DEFAULT)
    *path, last = key.split(".")
    section = container
    for part in path:
        section = section[part]
    del section[last]
    with pytest.raises(ConfigError, match=rf"^{key}[: =]"):
        from_container(container)


def test_the_first_problem_is_told_and_the_others_are_counted() -> None:
    with pytest.raises(ConfigError) as refused:
        compose.config(["seed=-1", "client.local_steps=0", "dtype=float16"])
    assert str(refused.value).startswith("seed=-1: ")
    assert "(2 more to mend: dtype, client.local_steps)" in str(refused.value)


def test_the_message_of_the_house() -> None:
    with pytest.raises(ConfigError) as refused:
        compose.config(["client.local_steps=0"])
    assert str(refused.value) == (
        "client.local_steps=0: a round needs at least one local step; set client.local_steps to 1 or more."
    )


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "{}", '{"seed": 1}', "null"])
def test_text_that_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_json(text)


def test_not_a_number_never_travels() -> None:
    text = to_json(compose.config()).replace('"beta": ', '"beta": NaN, "_": ', 1)
    with pytest.raises(ConfigError, match=r"scaling\.beta=nan"):
        from_json(text)


def test_equal_configurations_give_equal_strings() -> None:
    assert to_json(compose.config(["seed=1", "num_rounds=2"])) == to_json(
        compose.config(["num_rounds=2", "seed=1"])
    )


def test_devices_read_the_configuration_without_hydra_and_torch() -> None:
    code = (
        "import sys; from fedscale_local.config import from_json; from_json(sys.stdin.read());"
        "print([m for m in ('hydra', 'omegaconf', 'torch', 'flwr', 'numpy') if m in sys.modules])"
    )
    text = to_json(compose.config())
    child = subprocess.run(
        [sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == "[]"


# ---------------------------------------------------------------- run directories


def resolved(run_dir: Path | str | None) -> Config:
    return resolve_run_dir(
        from_container(DEFAULT).model_copy(update={"run_dir": None if run_dir is None else str(run_dir)})
    )


def test_a_run_directory_of_null_is_named_after_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = resolved(None).run_dir
    assert (
        first is not None and first.startswith("runs/") and first.endswith("-savic-adam-fashion_mnist_12k-s0")
    )
    assert list(tmp_path.iterdir()) == []
    Path(first).mkdir(parents=True)
    assert resolved(None).run_dir != first


def test_new_and_empty_directories_are_taken_as_they_are(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "new", tmp_path / "a" / "b" / "c"):
        assert resolved(path).run_dir == str(path)
    assert list(tmp_path.iterdir()) == []


def test_directories_in_use_and_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunDirError, match="choose another run_dir"):
            resolved(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_places_without_permission_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunDirError, match="nothing can be written"):
        resolved(tmp_path / "run")


def test_every_key_of_the_documentation_is_there() -> None:
    """The public interface: keys that others script against."""
    keys = set(DEFAULT_KEYS)
    public = """seed num_clients clients_per_round num_rounds run_dir dtype client.local_steps client.step_size
        client.batch_size client.momentum client.weight_decay scaling.beta scaling.alpha scaling.floor scaling.scope
        scaling.statistic scaling.combine scaling.refresh_every strategy.weighting strategy.mixing data.path
        partition.alpha eval_every checkpoint_every engine.mode engine.workers"""
    assert set(public.split()) <= keys
    assert json.loads(to_json(compose.config())).keys() == {key.partition(".")[0] for key in keys}


def test_an_interrupt_while_a_configuration_is_written_down_comes_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pydantic calls Python for a discriminator, and makes a warning of what is raised there: the run would go on."""
    found = compose.config([])
    whole, written = to_container(found), list[dict[str, Any]]()

    def interrupted(self: Config, **options: Any) -> dict[str, Any]:
        signal.raise_signal(signal.SIGINT)
        written.append(dump(self, **options))
        return written[-1]

    dump = Config.model_dump
    monkeypatch.setattr(Config, "model_dump", interrupted)
    with pytest.raises(KeyboardInterrupt):
        to_container(found)
    assert written == [whole]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
