"""The report of a run: one file, complete, escaped, the same for the same run, with every round drawn."""

from __future__ import annotations

import base64
import csv
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import run_dirs
from rich.console import Console

from fedscale_local import plots, reports
from fedscale_local.errors import RunDirError
from fedscale_local.reports import facts, quantities
from fedscale_local.run_dir import read

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Elements and text of a page; refuses an element that is closed in the wrong order or left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def text_of(run_dir: Path) -> str:
    return reports.write(run_dir).read_text(encoding="utf-8")


def path_points(text: str, name: str) -> int:
    """Points of the curve with this id."""
    group = text[text.index(f'<g id="{name}"') :]
    drawn = re.search(r'<path d="([^"]*)"', group)
    assert drawn is not None
    return len(re.findall(r"[ML]", drawn.group(1)))


def csv_of(text: str) -> list[dict[str, str]]:
    uri = re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]*)"', text)
    assert uri is not None
    return list(csv.DictReader(io.StringIO(base64.b64decode(uri.group(1)).decode("utf-8"))))


def shown(run_dir: Path) -> str:
    """What the terminal shows."""
    stream = io.StringIO()
    reports.show(run_dir, Console(file=stream, width=240))
    return stream.getvalue()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_dirs.usual(tmp_path_factory.mktemp("runs") / "usual")


# ---------------------------------------------------------------- one file, complete


def test_the_report_is_one_file_that_loads_and_runs_nothing(usual: Path) -> None:
    text = text_of(usual)
    assert "http://" not in text and "https://" not in text and "//cdn" not in text and "@import" not in text
    page = Page(text)
    assert not [
        tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "img", "object", "base")
    ]
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), name
            if name in ("href", "xlink:href", "src"):
                assert value is not None and value.startswith(("#", "data:")), value
    policy = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert (
        policy and policy[0] is not None and "default-src 'none'" in policy[0] and "script" not in policy[0]
    )


def test_ids_are_unique_and_every_reference_inside_the_page_leads_somewhere(usual: Path) -> None:
    text = text_of(usual)
    ids = [a["id"] for _, a in Page(text).elements if a.get("id")]
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', text)
    assert references and set(references) <= set(ids)


def test_the_same_run_gives_the_same_bytes(usual: Path, tmp_path: Path) -> None:
    first = reports.write(usual, tmp_path / "first.html").read_bytes()
    code = "import sys; from fedscale_local import reports; reports.write(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, usual, tmp_path / "second.html"], check=True)
    assert first == (tmp_path / "second.html").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first.html", "second.html"]  # no temporary file


def test_the_settings_of_the_user_change_nothing(usual: Path) -> None:
    import matplotlib

    before = text_of(usual)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "svg.fonttype": "path"}):
        assert text_of(usual) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_the_headline_says_what_the_records_say(usual: Path) -> None:
    run = read(usual)
    text = Page(text_of(usual)).text
    accuracy = [r["test_accuracy"] for r in run.rounds]
    best = max(range(60), key=accuracy.__getitem__)
    assert f"{accuracy[-1]:.2%}" in text and f"best {accuracy[best]:.2%} in round {best + 1}" in text
    assert "SAVIC with Adam scaling on fashion_mnist_12k" in text
    assert "10 local steps of size 0.002 on batches of 32" in text
    total = 60 * 20 * 4 * 28938 * 3
    assert quantities.bytes_text(total) == "417 MB" and "417 MB" in text
    assert "46.2 s" in text  # 60 rounds of 0.77 s
    assert "200 clients, 20 a round" in text and "dirichlet partition (alpha 0.3, min examples 10)" in text


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("number", [1, 60, 500])
def test_the_curves_have_a_point_for_every_round(tmp_path: Path, number: int) -> None:
    text = text_of(run_dirs.usual(tmp_path / "run", number))
    for figure, curve in [
        ("accuracy-rounds", "test-accuracy"), ("accuracy-bytes", "test-accuracy"),
        ("loss-rounds", "training-loss"), ("loss-rounds", "test-loss"),
        ("loss-bytes", "training-loss"), ("loss-bytes", "test-loss"),
        ("d-0", "largest"), ("d-0", "smallest"), ("d-1", "condition"), ("d-2", "relative-change"),
    ]:  # fmt: skip
        assert path_points(text, f"{figure}-{curve}") == number
    assert len(csv_of(text)) == number


def test_rounds_without_evaluation_have_no_point_and_an_empty_cell(tmp_path: Path) -> None:
    text = text_of(run_dirs.usual(tmp_path / "run", 50, eval_every=7))
    assert path_points(text, "loss-rounds-test-loss") == 8  # 7, 14, ..., 49, and the last
    assert path_points(text, "loss-rounds-training-loss") == 50
    rows = csv_of(text)
    assert [row["round"] for row in rows if row["test_loss"]] == [
        "7",
        "14",
        "21",
        "28",
        "35",
        "42",
        "49",
        "50",
    ]


def test_points_against_bytes_count_the_bytes_of_rounds_in_between() -> None:
    rounds = [
        {"round": p, "bytes_up": 1, "bytes_down": 10, "test_loss": p if p % 2 else None} for p in (1, 2, 3)
    ]
    assert plots.points(rounds, "test_loss", "bytes") == ([11.0, 33.0], [1.0, 3.0])


def test_a_curve_stands_where_its_numbers_say() -> None:
    """Equal steps of loss are equal steps on paper: the curve is not drawn over a wrong axis."""
    rounds = [{"round": p, "test_loss": 4.0 - p} for p in (1, 2, 3)]
    figure = plots.loss_figure(rounds)
    assert figure is not None
    line = next(line for line in figure.axes[0].lines if line.get_gid() == "test-loss")
    assert list(line.get_xdata()) == [1, 2, 3] and list(line.get_ydata()) == [3, 2, 1]
    assert figure.axes[0].get_yscale() == "linear"
    wide = plots.loss_figure([{"round": p, "test_loss": 10.0**-p} for p in (1, 2, 3)])
    assert wide is not None and wide.axes[0].get_yscale() == "log"


def test_a_method_without_a_preconditioner_has_no_such_section(tmp_path: Path) -> None:
    fedavg = run_dirs.config(strategy={"name": "fedavg", "weighting": "uniform", "mixing": "mean"})
    records = run_dirs.rounds(5, scaled=False)
    text = text_of(run_dirs.write(tmp_path / "r", records, config=fedavg, manifest=run_dirs.manifest()))
    page = Page(text)
    assert "FedAvg (Local SGD) on" in page.text and "averages their models, all alike" in page.text
    assert "Preconditioner" not in page.text and "Who holds what" not in page.text


def test_a_run_without_accuracy_shows_losses_only(tmp_path: Path) -> None:
    text = text_of(run_dirs.usual(tmp_path / "run", 10, accuracy=False))
    assert "loss-rounds" in text and "accuracy-rounds" not in text and "Test accuracy" not in text


@pytest.mark.parametrize("clients", [1, 10, 60, 61, 1000, 10_000])
def test_the_partition_is_drawn_for_few_and_for_many(clients: int) -> None:
    table = run_dirs.partition(clients, examples=60_000)
    text = plots.svg(plots.partition_figure(table["counts"], table["classes"]), "p", "who holds what")
    bars = clients <= 60
    assert ('id="p-class-3"' in text) == bars and ("<image" in text) == (not bars)
    for name in run_dirs.FASHION:
        assert f">{name}</text>" in text
    assert len(text) < 250_000


def test_bars_are_as_high_as_the_counts() -> None:
    figure = plots.partition_figure([[3, 0], [1, 4]], ["a", "b"])
    paths = {patch.get_gid(): patch.get_path() for patch in figure.axes[0].patches}
    patches = {name: path.vertices[path.codes != path.CLOSEPOLY] for name, path in paths.items()}
    assert patches["class-0"][:, 1].max() == 3
    assert (patches["class-1"][:, 1].min(), patches["class-1"][:, 1].max()) == (1, 5)  # on top of class 0
    assert len(patches["class-1"]) == 4  # client 0 has none: one rectangle only


def test_many_clients_are_drawn_in_the_order_of_their_main_class() -> None:
    table = [[0, 8], [8, 0], [0, 0], [5, 3]] * 20
    figure = plots.partition_figure(table, ["a", "b"])
    shares = figure.axes[1].images[0].get_array()
    assert shares is not None and shares.shape == (2, 80, 4)
    strength = shares[..., 3]
    assert (strength[0, :20] == 1).all() and (strength[1, :20] == 0).all()  # pure a
    assert (strength[1, 20:40] > 0).all() and (strength[1, 20:40] < strength[0, 20:40]).all()  # mostly a
    assert (strength[1, 40:60] == 1).all() and (strength[:, 60:] == 0).all()  # pure b, then the empty ones


def test_sizes_alone_are_drawn_from_the_largest(tmp_path: Path) -> None:
    sizes = {"num_clients": 3, "sizes": [2, 9, 4]}
    figure = plots.partition_figure(sizes=sizes["sizes"])
    steps = next(p for p in figure.axes[0].patches if p.get_gid() == "sizes")
    assert list(steps.get_data().values) == [9, 4, 2]
    run = run_dirs.write(
        tmp_path / "r",
        run_dirs.rounds(2),
        config=run_dirs.config(),
        manifest=run_dirs.manifest(),
        partition=sizes,
    )
    assert "A client holds 2 to 9 examples, 4 in the middle (mean 5.0)." in Page(text_of(run)).text


def test_the_partition_in_words_counts_empty_shards_and_classes(tmp_path: Path) -> None:
    table = {"num_clients": 3, "classes": ["a", "b"], "counts": [[3, 1], [0, 0], [0, 6]]}
    run = run_dirs.write(
        tmp_path / "r", [], config=run_dirs.config(), manifest=run_dirs.manifest(), partition=table
    )
    words = facts.partition_words(read(run))
    assert "4 to 6 examples" in words and "1 client holds none" in words
    assert "88% of a shard" in words and "1.5 of 2 classes" in words  # mean of 3/4 and 1; of 2 and 1


def test_a_picture_goes_to_a_file_on_white(tmp_path: Path) -> None:
    figure = plots.partition_figure([[3, 0], [1, 4]], ["a", "$b"])
    assert plots.save(figure, tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "fill: #ffffff" in plots.save(figure, tmp_path / "p.svg").read_text()


# ---------------------------------------------------------------- hostile and incomplete runs


def test_nothing_in_a_run_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&$x^2$"
    records = run_dirs.rounds(3)
    records[1]["failures"] = [{"client": 3, "reason": evil}, {"client": None, "reason": "=cmd()"}]
    table = {"num_clients": 2, "classes": [evil, "b"], "counts": [[3, 1], [0, 6]]}
    config = run_dirs.config(data={"name": evil}, strategy={"name": "flower", "_target_": evil, "x": evil})
    manifest = run_dirs.manifest(exit=f"failed: {evil}", data_note=evil, engine={"name": evil, evil: evil})
    run = run_dirs.write(tmp_path / "a&b", records, config=config, manifest=manifest, partition=table)
    text = text_of(run)
    assert "<script" not in text
    page = Page(text)
    assert page.text.count(evil) >= 8 and not page.all("script")
    row = csv_of(text)[1]
    assert row["failures"] == f"client 3: {evil}; client unknown: =cmd()" and row["num_failures"] == "2"
    assert not [cell for cell in row.values() if cell.startswith(("=", "@"))]


def test_failures_are_counted_and_listed(tmp_path: Path) -> None:
    records = run_dirs.rounds(150)
    for record in records:
        record["failures"] = [{"client": 7, "reason": "train: loss is nan"}]
    run = run_dirs.write(tmp_path / "r", records, config=run_dirs.config(), manifest=run_dirs.manifest())
    text = Page(text_of(run)).text
    assert "Failed replies" in text and "150" in text and "first 100" in text
    assert facts.failure_counts(read(run)) == [("train: loss is nan", 150)]


@pytest.mark.parametrize("status", ["running", "interrupted", "failed: RuntimeError: out of memory"])
def test_a_run_that_is_not_done_says_so(tmp_path: Path, status: str) -> None:
    config, manifest = run_dirs.config(), run_dirs.manifest(exit=status, finished=None)
    text = Page(text_of(run_dirs.write(tmp_path / "r", [], config=config, manifest=manifest))).text
    assert status.split(":")[0] in text and "No round has finished yet." in text
    assert ("This run ended early" in text) == (status != "running")


def test_a_round_where_everything_is_null_is_drawn_without_it(tmp_path: Path) -> None:
    records = run_dirs.rounds(4)
    for key in ("train_loss", "test_loss", "test_accuracy", "d_min", "d_max", "d_condition", "d_change"):
        records[2][key] = None
    run = run_dirs.write(tmp_path / "r", records, config=run_dirs.config(), manifest=run_dirs.manifest())
    text = text_of(run)
    assert path_points(text, "loss-rounds-test-loss") == 3 and path_points(text, "d-0-largest") == 3
    assert not re.search(r"\b(nan|inf|None)\b", Page(text).text)


def test_a_diverged_run_does_not_pass_an_early_loss_for_its_last(tmp_path: Path) -> None:
    records = run_dirs.rounds(5)
    for record in records[1:]:
        record["test_loss"] = None
    run = run_dirs.write(tmp_path / "r", records, config=run_dirs.config(), manifest=run_dirs.manifest())
    for text in (Page(text_of(run)).text, shown(run)):
        assert "The test loss was not finite in 4 rounds, first in round 2." in text
        assert f"in round 1, best {records[0]['test_loss']:.4g} in round 1" in text
    assert "in round 5, best" not in shown(run)  # the accuracy is from the last round: no need to say so


def test_numbers_of_any_size_are_drawn(tmp_path: Path) -> None:
    records = run_dirs.rounds(4)
    for record, value in zip(records, (1e300, 1e-300, 0.0, 5.0), strict=True):
        record |= {
            "train_loss": value,
            "test_loss": -value,
            "d_min": value,
            "d_max": value,
            "d_change": value,
        }
        record |= {"d_condition": 1.0, "bytes_up": 0, "bytes_down": 0, "test_accuracy": 1.0}
    run = run_dirs.write(tmp_path / "r", records, config=run_dirs.config(), manifest=run_dirs.manifest())
    Page(text_of(run))


def test_a_large_run_stays_small_and_quick_to_open(tmp_path: Path) -> None:
    run = run_dirs.write(
        tmp_path / "r", run_dirs.rounds(12_000), config=run_dirs.config(), manifest=run_dirs.manifest(),
        partition=run_dirs.partition(10_000, examples=60_000),
    )  # fmt: skip
    text = text_of(run)
    assert len(text) < 8e6 and "The last 1000 of 12,000" in text
    assert 2500 < path_points(text, "loss-rounds-test-loss") <= 5001
    assert len(csv_of(text)) == 12_000


def test_a_report_that_cannot_be_written_says_where(usual: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="cannot be written"):
        reports.write(usual, tmp_path / "missing" / "report.html")


# ---------------------------------------------------------------- words


def test_methods_in_words(tmp_path: Path) -> None:
    def words(**changes: object) -> tuple[str, str]:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        run = read(run_dirs.write(path, [], config=run_dirs.config(**changes), manifest=run_dirs.manifest()))
        return facts.method_name(run), facts.method_words(run)

    local = {
        "rule": "oasis",
        "scope": "local",
        "local_refresh": "step",
        "statistic": "hutchinson",
        "beta": 0.99,
    }
    name, text = words(scaling=local, strategy={"name": "savic", "mixing": "preconditioned"})
    assert name == "SAVIC with OASIS scaling"
    assert "its own OASIS preconditioner, refreshed every step from Hutchinson's estimate" in text
    assert "each coordinate weighted by the clients' preconditioners" in text
    name, text = words(strategy={"name": "flower", "_target_": "flwr.serverapp.strategy.FedAdam", "eta": 0.1})
    assert name == "FedAdam" and "flwr.serverapp.strategy.FedAdam(eta=0.1)" in text
    epochs = {
        "local_epochs": 1,
        "local_steps": None,
        "batch_size": "full",
        "momentum": 0.9,
        "weight_decay": 1e-4,
    }
    _, text = words(client=epochs)
    assert (
        "takes 1 local epoch on its whole shard, with momentum 0.9 (reset) and weight decay 0.0001." in text
    )
    assert words(scaling={"rule": "identity"})[0] == "SAVIC with no scaling"
    assert words(strategy={"name": "of tomorrow"}, client={}, scaling=None)[0] == "of tomorrow"


def test_the_terminal_shows_the_same_numbers(usual: Path) -> None:
    text = shown(usual)
    numbers = facts.summary(read(usual))
    assert numbers.test_accuracy is not None and f"{numbers.test_accuracy[0]:.2%}" in text
    assert "60 of 60 rounds" in text and "417 MB" in text
    assert "fashion_mnist_12k, " in text and "in_process, stacked, 2 workers" in text


def test_the_terminal_prints_brackets_as_they_are(tmp_path: Path) -> None:
    records = run_dirs.rounds(1)
    records[0]["failures"] = [{"client": 1, "reason": "bad [red]shape[/red] [2, 3]"}]
    run = run_dirs.write(tmp_path / "[r]", records, config=run_dirs.config(), manifest=run_dirs.manifest())
    assert "bad [red]shape[/red] [2, 3]" in shown(run) and "[r]" in shown(run)
