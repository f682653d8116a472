"""Heat maps of hyper-parameters: each cell is what was reached there, against closed forms and rows of tuning.json."""

from __future__ import annotations

import io
import re
from pathlib import Path

import compared
import pytest
from rich.console import Console

from fedscale_local import reports
from fedscale_local.reports import comparison, histories, settings, tuning
from fedscale_local.reports.settings import Group, Map, Setting

STEPS, ALPHAS = (0.001, 0.01, 0.1), (0.0001, 0.001)


def groups_of(directory: Path) -> list[Group]:
    runs, left_out = histories.gather([directory])
    found = comparison.compare(histories.methods(runs), None, None, left_out)
    return settings.of_methods(found.rows, found.metric)


def page_of(directory: Path, out: Path) -> str:
    return reports.compare([directory], out, console=Console(file=io.StringIO())).read_text()


def means(one: Map) -> dict[tuple[str, str], float]:
    """(label down, label across) -> mean."""
    return {
        (one.down.labels[i], one.across.labels[j]): settings.mean_of(cell).mean
        for (i, j), cell in one.cells.items()
    }


def test_each_strategy_has_a_map_whose_cells_are_the_means_over_its_seeds(tmp_path: Path) -> None:
    found = {
        group.name: group for group in groups_of(compared.grid(tmp_path, ("fedavg", "savic"), STEPS, ALPHAS))
    }
    assert set(found) == {"strategy=fedavg", "strategy=savic"}
    for name, above in (("strategy=fedavg", 0.0), ("strategy=savic", 0.02)):
        (one,) = settings.maps(found[name], True)
        assert (one.down.key, one.across.key) == ("client.step_size", "scaling.alpha")
        assert means(one) == {
            (f"{step:g}", f"{alpha:g}"): pytest.approx(compared.surface(step, alpha) + above, rel=1e-12)
            for step in STEPS
            for alpha in ALPHAS
        }


def test_the_page_frames_the_best_cell_and_has_its_number(tmp_path: Path) -> None:
    page = page_of(compared.grid(tmp_path / "runs", ("fedavg",), STEPS, ALPHAS), tmp_path / "page.html")
    (table,) = re.findall(r'<table class="heat">.*?</table>', page, re.S)
    (best,) = re.findall(r'<td class="best" style="--level:1" title="([^"]*)">([\d.]+%)', table)
    assert best == ("client.step_size=0.01 scaling.alpha=0.001", "80.00%")
    levels = [float(level) for level in re.findall('--level:([^;"]*)', table)]
    assert len(levels) == 6 and min(levels) == 0
    assert page.count('download="settings.csv"') == 1


def test_of_more_than_two_keys_a_map_shows_the_settings_with_the_other_numbers_of_the_best() -> None:
    every = [
        Setting("", {"a": a, "b": b, "c": c}, (a + b + c,)) for a in (1.0, 2.0) for b in (1.0, 3.0) for c in (5.0, 7.0)
    ]  # fmt: skip
    axes = tuple(settings.exact(key, [one.values[key] for one in every]) for key in "abc")
    found = {(m.down.key, m.across.key): m for m in settings.maps(Group("", axes, tuple(every)), True)}
    assert {pair: one.held for pair, one in found.items()} == {
        ("a", "b"): "c=7", ("a", "c"): "b=3", ("b", "c"): "a=2",
    }  # fmt: skip
    assert means(found["a", "b"]) == {("1", "1"): 9, ("1", "3"): 11, ("2", "1"): 10, ("2", "3"): 12}


def test_a_key_that_follows_another_makes_no_map() -> None:
    every = [Setting("", {"a": a, "b": 1 / a, "c": c}, (a,)) for a in (1.0, 2.0) for c in (5.0, 7.0)]
    assert settings.independent("abc", every) == (["a", "c"], ("b follows a",))


def test_over_one_key_every_run_is_a_dot_and_strategies_share_the_picture(tmp_path: Path) -> None:
    runs = compared.grid(tmp_path / "runs", ("fedavg", "savic"), STEPS, ALPHAS[:1])
    page = page_of(runs, tmp_path / "page.html")
    assert 'class="heat"' not in page
    for place in (0, 1):
        drawn = re.search(rf'<g id="sweep-0-runs-{place}">(.*?)</g>\s*</g>', page, re.S)
        assert drawn is not None and drawn[1].count("<use ") == 2 * len(STEPS)


def test_a_setting_that_diverged_under_one_seed_has_no_number(tmp_path: Path) -> None:
    compared.grid(tmp_path, ("fedavg",), STEPS, ALPHAS)
    lost = tmp_path / "fedavg-0.1-0.001-1" / "rounds.jsonl"
    lines = lost.read_text().splitlines(keepends=True)
    lost.write_text("".join([*lines[:-1], re.sub(r'("test_accuracy": )[^,]*', r"\1null", lines[-1])]))
    (group,) = groups_of(tmp_path)
    (one,) = [one for one in group.settings if one.lost]
    assert one.values == {"client.step_size": 0.1, "scaling.alpha": 0.001} and one.results == ()
    assert one.lost == "diverged or not measured under seed 1"


def test_trials_are_put_in_intervals_of_their_space_and_pruned_ones_count_in_no_mean(tmp_path: Path) -> None:
    (one,) = tuning.read(compared.tuned(tmp_path, ("fedavg",)))
    (group,) = settings.of_tuned(one)
    (drawn,) = settings.maps(group, True)
    assert drawn.down.labels == ("0.0001 to 0.00032", "0.00032 to 0.001", "0.001 to 0.0032", "0.0032 to 0.01")
    by_hand: dict[tuple[int, int], list[float]] = {}
    for trial in one.trials:
        if trial["state"] == "complete":
            borders = (10**-3.5, 1e-3, 10**-2.5)
            step, alpha = (
                sum(trial["values"][key] >= b for b in borders)
                for key in ("client.step_size", "scaling.alpha")
            )
            by_hand.setdefault((step, alpha), []).append(trial["value"])
    known = {
        place: settings.mean_of(cell).mean
        for place, cell in drawn.cells.items()
        if any(s.results for s in cell)
    }
    assert known == {place: pytest.approx(sum(v) / len(v), rel=1e-12) for place, v in by_hand.items()}
    assert sum(len(values) for values in by_hand.values()) == 13 < sum(map(len, drawn.cells.values())) == 16


def test_the_page_of_a_tuning_shows_its_trials_and_warns_of_the_edge(tmp_path: Path) -> None:
    page = page_of(compared.tuned(tmp_path / "tuned", ("fedavg", "savic")), tmp_path / "page.html")
    head, _, rest = page.partition("</header>")
    for name in ("fedavg", "savic"):
        warning = f"strategy={name}: client.step_size=0.0099 is on the upper edge of what was searched"
        assert warning in head
    assert rest.count('<table class="heat">') == 2
    (trials,) = re.findall(r"<summary>Every trial \(32\)</summary>.*?</details>", rest, re.S)
    assert trials.count("<tr>") == 33 and trials.count("<td>pruned</td>") == 6
