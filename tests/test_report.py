"""The report and the model card: complete, self-contained, and plain about who wins."""

from __future__ import annotations

import re
import warnings
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tasks.cronos_am.finetune import FinetuneRecord
from tasks.metrics import evaluate, reliability
from tasks.records import FitRecord
from tasks.reports.card import card_metadata
from tasks.reports.figures import (
    accuracy_figure,
    as_file,
    convergence_figure,
    path_figure,
    reliability_figure,
)
from tasks.reports.report import write_model_card, write_report

N = 400
CLASSES = ("animal", "a & b <script>alert(1)</script>", "plant")


def predictions(errors: int, *, seed: int = 0, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that are wrong on the first `errors` rows."""
    y = np.arange(N) % n_classes
    said = y.copy()
    said[:errors] = (y[:errors] + 1) % n_classes
    top = np.random.default_rng(seed).uniform(0.6, 0.99, N)
    p = np.repeat(((1 - top) / (n_classes - 1))[:, None], n_classes, axis=1)
    p[np.arange(N), said] = top
    return y, p


PATH = ((0.3, 0.91, 3e-2), (0.1, 0.93, 4e-2), (0.01, 0.948, 0.0))


def history(*gaps: float) -> list[dict[str, float]]:
    return [
        {"passes": 8.0 * (k + 1), "seconds": 0.5 * (k + 1), "relative_gap": gap}
        for k, gap in enumerate(gaps)
    ]


def point(beta: float, loss: float, gap: float, norms=(1.2, 0.0, 0.3)) -> dict:
    return {
        "beta": beta,
        "validation_loss": loss,
        "standard_error": 0.02,
        "difference_error": 0.01,
        "validation_accuracy": 1 - loss,
        "relative_gap": gap,
        "passes": 10,
        "gate_norms": list(norms),
        "history": history(0.3, gap),
    }


def record_of(y: np.ndarray, head: np.ndarray, probe: np.ndarray, **changes) -> FitRecord:
    a, b = evaluate(head, y), evaluate(probe, y)
    record = FitRecord(
        task="wordnet6",
        backbone="minilm",
        modality="text",
        n_train=1275,
        n_validation=225,
        n_test=len(y),
        dim=384,
        n_classes=head.shape[1],
        activation="gated_relu",
        loss="softmax",
        solver="fista",
        n_gates=64,
        beta=0.0277,
        beta_max=2.77,
        primal=0.1757,
        dual=0.1740,
        relative_gap=0.00990,
        cone_violation=0.0,
        pattern_violation=1.26,
        passes=153,
        validation_accuracy=0.948,
        test_accuracy=a.accuracy,
        test_accuracy_interval=a.accuracy_interval,
        test_macro_f1=a.macro_f1,
        test_nll=a.nll,
        test_ece=a.ece,
        linear_probe_test_accuracy=b.accuracy,
        truncated_fraction=0.0003,
        seconds={"extract": 71.2, "fit": 12.5, "fit_compile": 3.2, "baseline": 4.3},
        peak_rss_mb=1834.2,
        artefact="/home/somebody/out/wordnet6",
        store="/home/somebody/.cache/convex-heads/stores/wordnet6-minilm-0123456789ab",
        seed=0,
        versions={"convex-heads": "0.1.0", "jax": "0.10.2"},
        linear_probe_test_accuracy_interval=b.accuracy_interval,
        linear_probe_C=0.0119,
        calibration_temperature=1.08,
        path=[point(f * 2.77, 1 - acc, gap) for f, acc, gap in PATH],
        history=history(5e-2, 0.0099),
        tolerance=0.01,
        classes=CLASSES[: head.shape[1]],
        notes=("val is used as test",),
        command="convex-heads fit wordnet6 --backbone minilm --out out/wordnet6",
    )
    return replace(record, **changes)


def report(directory: Path, head_errors: int, probe_errors: int, **changes) -> str:
    y, head = predictions(head_errors)
    _, probe = predictions(probe_errors, seed=1)
    record = record_of(y, head, probe, **changes)
    path = write_report(
        directory, record, labels=y, head_probabilities=head, probe_probabilities=probe
    )
    assert path == directory / "report.html"
    return path.read_text("utf-8")


class Page(HTMLParser):
    """Collects what a test asks about a page, and fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "data", "action"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_one_self_contained_well_formed_file(tmp_path: Path) -> None:
    text = report(tmp_path, 10, 40)
    page = Page(text)
    assert "script" not in page.tags
    assert page.tags.count("svg") == 4
    assert all(link.startswith("#") for link in page.links), page.links
    assert len(page.ids) == len(set(page.ids)), "ids meet"
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert {name for name in re.findall(r"url\(#([^)]*)\)", text)} <= set(page.ids)
    # No address but those that name an XML dialect, and nothing fetched from a style sheet.
    addresses = {a for a in re.findall(r"https?://[^\s\"'<>)]+", text) if "w3.org" not in a}
    assert not addresses
    assert "@import" not in text
    assert 'name="viewport"' in text


def test_page_says_what_a_reader_needs(tmp_path: Path) -> None:
    text = Page(report(tmp_path, 10, 40)).text
    for words in (
        "97.5%",  # the head's accuracy
        "90.0%",  # the probe's
        "0.1757",  # objective
        "0.99 %",  # gap
        "0.03 % of the texts",  # truncation
        "minilm, frozen, 384 features",
        "val is used as test",
        "convex-heads fit wordnet6 --backbone minilm",
        "jax 0.10.2",
        CLASSES[1],  # escaped in the source, whole to the reader
        "1.26 (above 1",
    ):
        assert words in text, words
    assert "cone violation" not in text  # a gated head has no cones


def test_page_carries_no_path_of_the_machine(tmp_path: Path) -> None:
    text = report(tmp_path, 10, 40, backbone="timm:local-dir:/home/somebody/nets/mobilenet")
    assert "/home/somebody" not in text
    assert "timm:mobilenet" in text


@pytest.mark.parametrize(
    ("head_errors", "probe_errors", "start"),
    [
        (10, 40, "The convex head is more accurate than the linear probe"),
        (40, 10, "The convex head loses: it is less accurate than the linear probe"),
        (20, 22, "No difference in accuracy"),
        (22, 20, "No difference in accuracy"),
        (20, 20, "No difference in accuracy"),
    ],
)
def test_verdict_comes_from_the_paired_test(
    tmp_path: Path, head_errors: int, probe_errors: int, start: str
) -> None:
    text = report(tmp_path, head_errors, probe_errors)
    verdict = re.search(r'<p class="verdict">(.*?)</p>', text, re.S)
    assert verdict
    assert verdict[1].startswith(start)
    discordant = abs(head_errors - probe_errors)
    p_value = min(1.0, 2.0 ** (1 - discordant))  # all discordant rows on one side
    assert f"p = {p_value:.2g}" in verdict[1]


def test_probabilities_of_another_fit_are_refused(tmp_path: Path) -> None:
    y, head = predictions(10)
    _, probe = predictions(40)
    record = record_of(y, head, probe)
    with pytest.raises(ValueError, match="the record says"):
        write_report(
            tmp_path, record, labels=y, head_probabilities=probe, probe_probabilities=probe
        )
    assert not (tmp_path / "report.html").exists()


def test_images_one_beta_and_no_calibration(tmp_path: Path) -> None:
    text = report(
        tmp_path,
        10,
        40,
        modality="image",
        truncated_fraction=None,
        calibration_temperature=None,
        pattern_violation=None,
        cone_violation=1e-4,
        activation="relu",
        path=[],
        history=(),
        notes=(),
        command="",
        skipped_rows=23,
        skipped=[(f"ant/{k}.jpg", "the image does not decode") for k in range(23)],
    )
    page = Page(text)
    assert page.tags.count("svg") == 2
    assert "truncation" not in page.text
    assert "not calibrated" in page.text
    assert "pattern violation" not in page.text
    assert "cone violation" in page.text
    assert "23 rows that could not be used" in page.text
    assert "ant/19.jpg (the image does not decode); and 3 more" in page.text
    assert "ant/20.jpg" not in page.text
    assert "Made by" not in page.text


def finetuned(y: np.ndarray, head: np.ndarray, probe: np.ndarray, changed: int) -> FinetuneRecord:
    given = {f.name: getattr(record_of(y, head, probe), f.name) for f in fields(FitRecord)}
    return FinetuneRecord(
        **given,
        unfreeze=2,
        n_blocks=6,
        rounds=[],
        frozen_test_accuracy=0.8125,
        changed_parameters=changed,
        interrupted=False,
    )


@pytest.mark.parametrize("changed", [0, 1000])
def test_fine_tuning_says_what_each_head_stands_on_and_what_it_gained(
    changed: int, tmp_path: Path
) -> None:
    y, head = predictions(10)
    _, probe = predictions(60, seed=1)
    record = finetuned(y, head, probe, changed)
    path = write_report(
        tmp_path, record, labels=y, head_probabilities=head, probe_probabilities=probe
    )
    page = Page(path.read_text("utf-8")).text
    assert "frozen backbone gets 81.25% of the test rows right" in page
    assert "same standardised features" in page or changed
    if changed:
        assert "features of the frozen backbone, the head is on those of the fine-tuned" in page
        assert "with the top 2 of 6 blocks trained it is 97.50%" in page
        assert "head on the fine-tuned features is more accurate than the linear probe on" in page
    card = write_model_card(tmp_path, record).read_text("utf-8")
    assert "81.25%" in card


def test_a_violation_next_to_one_is_not_rounded_to_one(tmp_path: Path) -> None:
    page = Page(report(tmp_path, 10, 40, pattern_violation=1.0000234)).text
    assert "1 + 2.3e-05 (above 1: further gates" in page


@pytest.mark.parametrize(
    ("head", "probe", "said"),
    [
        (1.08, 0.71, "1.08 for the head and 0.71 for the probe"),
        (None, 0.71, "squared loss has no temperature; the probe's scores are divided by 0.71"),
        (1.08, None, "the probe is not calibrated"),
    ],
)
def test_it_is_said_which_of_the_two_is_calibrated(head, probe, said, tmp_path: Path) -> None:
    found = {"calibration_temperature": head, "linear_probe_temperature": probe}
    assert said in Page(report(tmp_path, 10, 40, **found)).text


def test_a_plot_without_a_line_is_left_out(tmp_path: Path) -> None:
    dots = {"path": [point(0.3, 0.1, 1e-2) | {"history": history(0.01)}] * 3}
    page = report(tmp_path, 10, 40, **dots, history=history(1e-3))
    assert "convergence-" not in page and "Each line" not in page
    assert "convergence-" in report(tmp_path, 10, 40)
    early = [("a", history(0.5)), ("b", [r | {"seconds": 1e-4} for r in history(0.3, 0.1)])]
    assert "seconds" not in convergence_figure(early, 0.02)  # all went by before the first bound


def test_pages_follow_a_dark_screen_with_figures_on_paper(tmp_path: Path) -> None:
    page = report(tmp_path, 10, 40)
    assert "prefers-color-scheme: dark" in page and "svg { background: #fff" in page
    assert not re.search(r"background: #(?!fff; padding)", page)  # colours come from the scheme
    assert as_file(accuracy_figure(["a"], [0.9], [(0.8, 1.0)])).startswith(
        '<svg style="background: #fff"'
    )


def test_a_font_without_a_letter_is_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "蜜蜂" in accuracy_figure(["蜜蜂"], [0.9], [(0.8, 1.0)])


def test_no_certificate_is_said(tmp_path: Path) -> None:
    text = report(tmp_path, 10, 40, dual=float("nan"), relative_gap=float("nan"))
    assert "There is no certificate" in text


def test_many_classes_show_the_hardest(tmp_path: Path) -> None:
    y, head = predictions(25, n_classes=77)
    _, probe = predictions(30, n_classes=77)
    record = record_of(y, head, probe, classes=tuple(f"class {i:02d}" for i in range(77)))
    path = write_report(
        tmp_path, record, labels=y, head_probabilities=head, probe_probabilities=probe
    )
    page = Page(path.read_text("utf-8"))
    assert "The 30 of 77 classes that it recalls worst" in page.text
    assert "class 00" in page.text  # always wrong
    assert "and 57 more" in page.text


def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert report(tmp_path / "a", 10, 40) == report(tmp_path / "b", 10, 40)


def test_card_is_valid_for_the_hub_and_tells_the_figures(tmp_path: Path) -> None:
    y, head = predictions(10)
    _, probe = predictions(40)
    record = record_of(y, head, probe)
    path = write_model_card(tmp_path, record)
    assert path == tmp_path / "README.md"
    assert "Beside other methods" not in path.read_text()
    card = ModelCard.load(path)
    assert card.data.library_name == "convex-heads"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    accuracy, f1 = card.data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", record.test_accuracy)
    assert f1.metric_value == pytest.approx(record.test_macro_f1, abs=1e-6)
    for words in (
        f"| convex head | {record.n_test} | 0.9750 |",
        f"| linear probe on the same features | {record.n_test} | 0.9000 |",
        "0.99 %",
        record.command,
        "ConvexHeadPipeline.from_pretrained",
    ):
        assert words in card.text, words
    assert "The backbone is named here, not\ncontained." in card.text
    assert "/home/somebody" not in card.content
    assert "\n\n\n" not in card.content and "{" not in card.text.partition("## Use")[0]
    headings = re.findall(r"^## (.*)$", card.text, re.M)
    parts = ["Measured", "Certificate", "Calibration", "Data and backbone", "Use", "Intended use"]
    assert headings == [*parts, "Made by"]
    # Every row of every table has as many cells as its header.
    for table in re.findall(r"(?:^\|.*\|\n)+", card.content, re.M):
        assert len({row.count("|") for row in table.strip().splitlines()}) == 1, table


@pytest.mark.parametrize(
    ("backbone", "base"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        (
            "st:sentence-transformers/all-mpnet-base-v2@main",
            "sentence-transformers/all-mpnet-base-v2",
        ),
        ("st:all-mpnet-base-v2", "sentence-transformers/all-mpnet-base-v2"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("timm:resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("timm:local-dir:/home/somebody/net", None),
        ("st:/home/somebody/net", None),
        ("toy:text-32", None),
    ],
)
def test_base_model_is_what_the_hub_calls_it(backbone: str, base: str | None) -> None:
    header = card_metadata("text", backbone, ("wordnet6",), (), accuracy=0.9, macro_f1=0.8)
    assert ModelCard(f"---\n{header}\n---\n").data.base_model == base
    assert "/home/somebody" not in header


@pytest.mark.parametrize(
    ("command", "datasets"),
    [
        ("convex-heads fit imdb --backbone minilm", ["stanfordnlp/imdb"]),
        ("convex-heads fit ./imdb.csv", None),
        ("convex-heads finetune hub:someone/imdb:plain", ["someone/imdb"]),
        ("convex-heads refit head hub:someone/imdb", ["someone/imdb"]),
        ("convex-heads fit wordnet6", None),
        ("", None),
    ],
)
def test_a_file_is_not_called_the_data_set_of_its_name(command: str, datasets: list | None) -> None:
    header = card_metadata("text", "minilm", ("imdb",), (command,), accuracy=0.9, macro_f1=0.8)
    assert ModelCard(f"---\n{header}\n---\n").data.datasets == datasets


def test_figures_can_stand_on_one_page() -> None:
    y, p = predictions(10)
    bins = [reliability(p, y), reliability(p, y)]
    figures = [
        accuracy_figure(["a", "b"], [0.9, 1.0], [(0.85, 0.95), (0.99, 1.0)]),
        path_figure([point(0.1, 0.3, 1e-3), point(0.2, 0.4, 1e-2)], 0.1, 1.0),
        convergence_figure([("0.1", history(2.0, 0.0)), ("final", history(1e-3))], 0.02),
        reliability_figure(["a", "b"], bins),
    ]
    ids = [name for figure in figures for name in Page(figure).ids]
    assert len(ids) == len(set(ids))
    for figure in figures:
        assert "<text" in figure  # text stays text
        assert "<metadata" not in figure


def curves(svg: str, colour: str) -> list[np.ndarray]:
    """Points (k, 2) of every stroked line of a colour, in the order drawn; y grows downwards."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: none;[^"]*stroke: {colour}', svg)
    return [
        np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", each), float)
        for each in found
        if "Q" not in each and "C" not in each
    ]


def test_path_figure_draws_what_the_path_says() -> None:
    losses, betas = [0.5, 0.3, 0.2, 0.25], [0.1, 0.03, 0.01, 0.003]
    norms = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.1), (2.0, 0.01, 0.2), (2.0, 0.1, 0.4)]
    path = [point(b, loss, 1e-2, n) for b, loss, n in zip(betas, losses, norms, strict=True)]
    svg = path_figure(path, 0.03, 1.0)
    teal, ink, orange = "#0b6e75", "#24292f", "#b4540a"
    loss, accuracy, *gates = curves(svg, teal)
    for curve, values in ((loss, losses), (accuracy, [loss - 1 for loss in losses])):
        # Straight in the values, whatever the axis: larger values are higher up.
        slope = np.polyfit(values, curve[:, 1], 1)
        np.testing.assert_allclose(np.polyval(slope, values), curve[:, 1], atol=0.01)
    assert np.polyfit(losses, loss[:, 1], 1)[0] < 0
    assert (np.diff(loss[:, 0]) > 0).all()  # less regularised to the right
    chosen = {float(line[0, 0]) for line in curves(svg, orange)}
    assert chosen == {loss[1, 0]}
    # A gate has a line where it is on and none where it is off.
    assert sorted(len(line) for line in gates) == [2, 3]
    always_on = next(c for c in curves(svg, ink) if len(c) == 3)
    np.testing.assert_allclose(always_on[:, 0], loss[1:, 0])
    for odd in ([point(0.1, 0.3, 1e-2, (0.0,))] * 2, [point(0.1, 0.3, 1e-2, (0.0, 0.0, 0.0))]):
        assert "always-on" not in path_figure(odd, 0.1, 1.0)


def test_convergence_figure_counts_on_from_solve_to_solve() -> None:
    svg = convergence_figure([("a", history(0.5, 0.1)), ("b", history(0.1, 0.01))], 0.02)
    first, second = curves(svg, "#0b6e75")[0], curves(svg, "#b4540a")[0]
    x = np.r_[first[:, 0], second[:, 0]]
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], rtol=1e-3)  # 8, 16, then 24, 32 passes
    assert first[1, 1] == pytest.approx(second[0, 1], abs=0.01)  # the same gap
    assert first[0, 1] < first[1, 1] < second[1, 1]


def test_the_rule_that_chose_is_told(tmp_path: Path) -> None:
    assert "lowest validation loss, which" in report(tmp_path, 10, 40)
    assert "one-standard-error rule" in report(tmp_path, 10, 40, selection="one-se")
