"""Options of a comparison: budgets, targets, runs that do not match, downloads, fairness, against closed forms."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html import unescape
from pathlib import Path

import compared
import numpy as np
import pytest
import run_dirs
from rich.console import Console

from fedscale_local import cli, reports, sweep
from fedscale_local.reports import budget, clock, comparison, histories
from fedscale_local.reports.compare_tables import fairness
from fedscale_local.reports.measures import FAIRNESS, of_column

PER_ROUND = {"rounds": 1, "bytes": 2000, "steps": 50}
"""What a round of compared.run takes: 1000 bytes each way, 10 local steps of 5 clients."""


def of(directory: Path, at: str | None = None, target: float | None = None) -> comparison.Comparison:
    runs, left_out = histories.gather([directory])
    return comparison.compare(histories.methods(runs), at and budget.parse(at), target, left_out)  # type: ignore[arg-type]


def page_of(directory: Path, out: Path, **options: object) -> str:
    return reports.compare([directory], out, console=Console(file=io.StringIO()), **options).read_text()  # type: ignore[arg-type]


def downloads(page: str) -> dict[str, list[dict[str, str]]]:
    """file name -> rows of each table that the page offers."""
    found = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]*)"', page)
    return {name: list(csv.DictReader(io.StringIO(base64.b64decode(text).decode()))) for name, text in found}


@pytest.mark.parametrize(
    ("at", "round"), [("rounds=4", 4), ("bytes=8kB", 4), ("bytes=9999B", 4), ("steps=200", 4)]
)
def test_a_run_is_taken_at_its_last_round_within_the_budget(at: str, round: int, tmp_path: Path) -> None:
    runs = compared.methods(tmp_path, {"a": [0.8, 0.7], "b": [0.9, 0.6]})
    row = of(runs, at).rows[0]
    for seed, run in row.method.runs.items():
        lines = [json.loads(line) for line in (run.run.path / "rounds.jsonl").read_text().splitlines()]
        assert row.columns["final"][seed] == lines[round - 1]["test_accuracy"]
        assert {axis: row.columns[f"{axis}_spent"][seed] for axis in PER_ROUND} == {
            axis: round * each for axis, each in PER_ROUND.items()
        }


def test_equal_bytes_give_a_method_that_sends_twice_as_much_half_the_rounds(tmp_path: Path) -> None:
    compared.methods(tmp_path, {"lean": [0.8] * 5})
    compared.methods(tmp_path, {"wide": [0.8] * 5}, bytes_up=3000)
    by_rounds, by_bytes = of(tmp_path), of(tmp_path, "bytes=12kB")
    assert [row.of("rounds_spent").mean for row in by_rounds.rows] == [6, 6]
    assert {row.method.name: row.of("rounds_spent").mean for row in by_bytes.rows} == {
        "strategy=lean": 6,
        "strategy=wide": 3,
    }
    assert any("--at bytes=12kB compares at equal bytes" in note for note in by_rounds.notes)
    assert by_bytes.pairs[0].first.name == "strategy=lean" and by_bytes.pairs[0].is_decided


@pytest.mark.parametrize(
    "at", ["rounds", "rounds=0", "rounds=-1", "rounds=1e999", "hours=3", "bytes=5 parsecs", "rounds=x"]
)
def test_a_budget_that_is_none_is_one_message_and_exit_2(
    at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared.methods(tmp_path / "runs", {"a": [0.8]})
    assert (
        cli.main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "page.html"), "--at", at]) == 2
    )
    assert f"--at={at}: " in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_a_budget_below_the_first_round_is_refused_and_one_beyond_the_last_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared.methods(tmp_path / "runs", {"a": [0.8]})
    assert (
        cli.main(["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "p.html"), "--at", "bytes=1kB"])
        == 2
    )
    assert "no round of" in capsys.readouterr().err
    assert any("budgets are unequal" in note for note in of(tmp_path / "runs", "rounds=60").notes)


def test_what_a_target_takes_is_what_the_first_round_that_reaches_it_has_spent(tmp_path: Path) -> None:
    """Accuracy in round p is final - 0.6 (exp(-p / 2) - exp(-3)), so 0.696 in round 3 and 0.749 in 4."""
    runs = compared.methods(tmp_path, {"a": [0.8, 0.8], "b": [0.8, 0.65]})
    found = {row.method.name: row for row in of(runs, target=0.7).rows}
    for axis, each in PER_ROUND.items():
        assert found["strategy=a"].of(f"{axis}_to_target").mean == 4 * each
    assert found["strategy=a"].of("uplink_to_target").mean == 4 * 1000
    assert found["strategy=b"].of("rounds_to_target").n == 1  # the other seed never gets there
    assert "1 of 2" in page_of(runs, tmp_path / "page.html", target=0.7)


def redrawn(run: Path, accuracies: list[float | None], bytes_up: list[int]) -> None:
    """Give a run these accuracies and bytes, a number a round."""
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    for line, accuracy, sent in zip(lines, accuracies, bytes_up, strict=True):
        line |= {"test_accuracy": accuracy, "bytes_up": sent, "bytes_down": 0}
        line |= {"test_loss": None} if accuracy is None else {}
    (run / "rounds.jsonl").write_text("".join(map(run_dirs.line, lines)))


def test_the_mean_of_a_curve_is_the_area_under_it_over_its_width(tmp_path: Path) -> None:
    """Over rounds 2 to 6, which both cover: of the line p / 10 it is 4 / 10, of a tent from 0 to 1 to 0 it is 1 / 2."""
    compared.run(tmp_path / "line", 0, 0.8, strategy="line")
    redrawn(tmp_path / "line", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [1] * 6)
    compared.run(tmp_path / "tent", 0, 0.8, strategy="tent", changes={"eval_every": 2})
    redrawn(tmp_path / "tent", [None, 0.0, None, 1.0, None, 0.0], [1] * 6)
    found = {row.method.name.split()[0]: row.of("area").mean for row in of(tmp_path).rows}
    assert found == {"strategy=line": pytest.approx(0.4), "strategy=tent": pytest.approx(0.5)}
    found = {row.method.name.split()[0]: row.of("area").mean for row in of(tmp_path, "rounds=4").rows}
    assert found == {"strategy=line": pytest.approx(0.3), "strategy=tent": pytest.approx(0.5)}


def test_at_a_budget_of_bytes_the_area_is_over_bytes(tmp_path: Path) -> None:
    """0, 1, 1/2 after 1, 2 and 10 bytes: 1/2 over one byte and 3/4 over eight; by rounds each over one."""
    compared.run(tmp_path / "a", 0, 0.8, num_rounds=3)
    redrawn(tmp_path / "a", [0.0, 1.0, 0.5], [1, 1, 8])
    assert of(tmp_path, "bytes=10B").rows[0].of("area").mean == pytest.approx((1 / 2 + 8 * 3 / 4) / 9)
    assert of(tmp_path).rows[0].of("area").mean == pytest.approx((1 / 2 + 3 / 4) / 2)


@pytest.mark.parametrize(
    ("clock", "seconds"),
    [
        (None, 0.1 + 10 * 0.01 + 1600 / 50e6 + 1600 / 10e6),
        ("step=2s,down=8kbit,up=4kbit,latency=500ms", 0.5 + 20 + 1600 / 8000 + 1600 / 4000),
        ("latency=1min,step=0us", 60 + 1600 / 50e6 + 1600 / 10e6),
    ],
)
def test_simulated_seconds_are_latency_steps_and_bytes_over_the_bandwidth(
    clock: str | None, seconds: float, tmp_path: Path
) -> None:
    """A round has 10 local steps, and 1000 bytes each way for 5 clients: 1600 bits a client. Round 4 has the target."""
    runs = compared.methods(tmp_path / "runs", {"a": [0.8, 0.8]})
    (row,) = downloads(page_of(runs, tmp_path / "page.html", target=0.7, clock=clock))["runs.csv"][:1]
    assert float(row["simulated_to_target"]) == pytest.approx(4 * seconds, rel=1e-12)
    assert float(row["simulated_spent"]) == pytest.approx(6 * seconds, rel=1e-12)


def test_a_simulated_round_waits_for_the_client_with_the_most_steps(tmp_path: Path) -> None:
    """Two epochs over batches of 32: 2 ceil(examples / 32) steps, and a second each."""
    client = run_dirs.config()["client"] | {"local_steps": None, "local_epochs": 2}
    path = compared.run(tmp_path / "a", 0, 0.8, changes={"client": client})
    sizes = [17 * i for i in range(20)]
    (path / "partition.json").write_text(json.dumps({"num_clients": 20, "sizes": sizes}))
    slowest = [max(2 * -(-sizes[c] // 32) for c in clients) for clients in compared.sampled(0, 6)]
    assert len(set(slowest)) > 1
    (run,), _ = histories.gather([path], clock.Clock(step=1, latency=0, down=1e12, up=1e12))
    assert run.spent["simulated"] == pytest.approx(np.cumsum(slowest), abs=1e-6)


def test_a_sweeps_own_report_has_simulated_seconds_and_not_those_of_the_machine(tmp_path: Path) -> None:
    """Its bytes are the same on a machine that took another time."""
    runs = compared.methods(tmp_path / "runs", {"a": [0.8, 0.8], "b": [0.7, 0.7]})
    sweep.report(runs)
    page = (runs / "report.html").read_text()
    assert "<th>simulated time</th>" in page and "wall clock" not in page
    assert "<th>wall clock</th>" in page_of(runs, tmp_path / "page.html")
    for file in runs.glob("*/timing.jsonl"):
        file.write_text("".join(run_dirs.line({"round": p, "round_seconds": 100 * p}) for p in range(1, 7)))
    sweep.report(runs)
    assert (runs / "report.html").read_text() == page


@pytest.mark.parametrize(
    "clock",
    [
        "",
        "step",
        "step=10",
        "step=-1s",
        "step=1e999s",
        "down=0Mbit",
        "up=5parsecs",
        "tick=1s",
        "step=1s,step=2s",
    ],
)
def test_a_clock_that_is_none_is_one_message_and_exit_2(
    clock: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(compared.methods(tmp_path / "runs", {"a": [0.8]})), "--clock", clock]
    assert cli.main([*arguments, "--out", str(tmp_path / "page.html")]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"--clock={clock}: expected " in said and "give any of --clock step=10ms,down=50Mbit" in said


def test_runs_on_other_data_or_of_other_partitions_are_no_pairs(tmp_path: Path) -> None:
    compared.methods(tmp_path, {"a": [0.8] * 5, "b": [0.9] * 5})
    compared.run(tmp_path / "c-0", 0, 0.7, strategy="c", changes={"num_clients": 21})
    for seed in (3, 4):
        path = tmp_path / f"b-{seed}" / "partition.json"
        path.write_text(json.dumps(compared.partition(99)))
    found = of(tmp_path)
    words = {frozenset(m.name.split()[0][-1] for m in (p.first, p.second)): p.words for p in found.pairs}
    assert words[frozenset("ab")].startswith("Not enough seeds") and "over 3 seeds" in words[frozenset("ab")]
    for other in "ab":
        told = words[frozenset(f"c{other}")]
        assert "are no pairs and are not compared: they differ in num_clients" in told
    assert sum("partition.json differs" in words for words in found.checks) == 2


def test_the_downloads_are_the_numbers(tmp_path: Path) -> None:
    finals = {"savic": [0.8, 0.81, 0.82, 0.83, 0.84], "fedavg": [0.7, 0.72, 0.71, 0.73, 0.7]}
    found = downloads(page_of(compared.methods(tmp_path / "runs", finals), tmp_path / "page.html"))
    assert set(found) == {
        "runs.csv",
        "methods.csv",
        "costs.csv",
        "pairs.csv",
        "clients-train_accuracy.csv",
        "clients-train_loss.csv",
        "differences.csv",
        "manifests.csv",
    }
    assert {row["versions.torch"] for row in found["manifests.csv"]} == {"2.13.0"}
    assert [row["seed"] for row in found["manifests.csv"]] == [row["seed"] for row in found["runs.csv"]]
    for row in found["runs.csv"]:
        name = row["method"].removeprefix("strategy=")
        assert float(row["test_accuracy"]) == finals[name][int(row["seed"])]
        assert Path(row["run"]).name == f"{name}-{row['seed']}"
    (pair,) = found["pairs.csv"]
    assert (pair["ahead"], pair["behind"], pair["seeds"]) == ("strategy=savic", "strategy=fedavg", "5")
    assert pair["p (sign flips)"] == "0.062"  # 2 / 2^5


def test_fairness_is_over_the_clients_that_hold_something(tmp_path: Path) -> None:
    """20 clients evenly between final - 0.1 and final + 0.1: the worst two have a mean of final - 0.0947.

    Of the loss the worst are the largest.
    """
    runs = compared.methods(tmp_path / "runs", {"a": [0.8, 0.8]})
    file = tmp_path / "runs" / "a-0" / "clients.json"
    held = json.loads(file.read_text())
    file.write_text(json.dumps({key: [*values, None] for key, values in held.items()}))
    found = of(runs)
    assert found.clients == ["train_accuracy", "train_loss"]
    variance = (0.2 / 19) ** 2 * (20**2 - 1) / 12
    by_hand = {
        "train_accuracy": (0.8, 0.7 + 0.1 / 19, variance),
        "train_loss": (0.7, 0.8 - 0.1 / 19, variance),
    }
    for key, figures in by_hand.items():
        for seed in (0, 1):
            told = [found.rows[0].columns[of_column(key, figure)][seed] for figure in FAIRNESS]
            assert told == pytest.approx(figures, rel=1e-12)
    header, body = fairness(found, "train_accuracy")
    assert header[-1] == "variance (points²)" and body[0][-1] == f"{1e4 * variance:.3g}"
    page = page_of(runs, tmp_path / "page.html")
    for title in ("Training accuracy", "Training loss"):
        assert f"<figcaption>{title} from client to client</figcaption>" in page
    rows = downloads(page)
    assert float(rows["runs.csv"][0]["clients_train_loss_variance"]) == pytest.approx(variance, rel=1e-12)
    assert rows["clients-train_loss.csv"][0]["variance"] == f"{variance:.3g}"


def test_what_is_told_of_test_examples_and_of_own_models_goes_before_and_beside(tmp_path: Path) -> None:
    runs = compared.methods(tmp_path / "runs", {"a": [0.8, 0.8]})
    for seed in (0, 1):
        file = tmp_path / "runs" / f"a-{seed}" / "clients.json"
        more = {"test_accuracy": [0.5, 0.7, None], "personal_test_accuracy": [0.9, 0.7, None], "failures": []}
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    found = of(runs)
    assert found.clients == ["test_accuracy", "personal_test_accuracy"]
    told = [found.rows[0].columns[of_column(key, figure)][0] for key in found.clients for figure in FAIRNESS]
    assert told == pytest.approx([0.6, 0.5, 0.01, 0.8, 0.7, 0.01], rel=1e-12)
    header, body = fairness(found, "test_accuracy")
    assert len(header) == len(body[0]) == 1 + 2 * len(FAIRNESS)
    assert body[0][4].startswith("80.00%")
    page = page_of(runs, tmp_path / "own.html")
    assert page.count("each with a model of its own") and "on every client's own test examples" in unescape(
        page
    )
    file.unlink()
    assert of(runs).clients == [] and "From client to client" not in page_of(runs, tmp_path / "page.html")


def test_nothing_is_asked_of_a_network_and_no_script_runs(tmp_path: Path) -> None:
    page = page_of(
        compared.methods(tmp_path / "runs", {"a": [0.8, 0.7], "b": [0.9, 0.6]}), tmp_path / "page.html"
    )
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page and "@import" not in page
    assert "default-src &#x27;none&#x27;" in page
