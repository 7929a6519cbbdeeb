"""The pipeline from Python: raw rows in, labels out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from extractors.errors import InputError
from tasks import ConvexHeadPipeline
from tasks.answers import many
from tasks.config import FitConfig
from tasks.console import QuietReporter
from tasks.fit import run_fit
from tasks.records import FitRecord


def _same(answer: dict, other: dict) -> bool:
    """Whether two answers are one; where a row stands in its batch may move the last digit."""
    score = pytest.approx(other["score"], rel=1e-5)
    return answer == {**other, "score": score}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> FitRecord:
    folder = tmp_path_factory.mktemp("digits")
    config = FitConfig(data="digits", backbone="toy:image", out=folder / "head", seed=3)
    return run_fit(config, reporter=QuietReporter())


def test_one_item_gives_one_answer_and_a_list_gives_a_list(fitted):
    clf = ConvexHeadPipeline.from_pretrained(fitted.artefact)
    image = np.zeros((8, 8), np.uint8)
    one = clf(image)
    assert isinstance(one, dict)
    assert set(one) == {"label", "score"}
    assert clf([image]) == [one]
    assert clf([]) == []
    assert one["label"] in clf.classes


def test_what_is_no_item_and_no_head_is_said_by_its_type(fitted):
    clf = ConvexHeadPipeline.from_pretrained(fitted.artefact)
    assert repr(clf) == "ConvexHeadPipeline(image, toy:image-32, 10 classes)"
    for wrong in (5, None, {"image": 1}, {1, 2}):
        with pytest.raises(InputError, match=rf"^{type(wrong).__name__} is no image: give a path"):
            clf(wrong, on_bad_row="skip")
    with pytest.raises(InputError, match=r"^top_k is 'x': must be a whole number"):
        clf(np.zeros((8, 8), np.uint8), top_k="x")
    with pytest.raises(InputError, match=r"^NoneType is no artefact: name a folder"):
        ConvexHeadPipeline.from_pretrained(None)

    class DataFrame:
        columns = ("text",)

    for wrong in (5, None, b"a", DataFrame()):
        with pytest.raises(InputError, match=r"is no text: give a text, or a list of them") as told:
            many(wrong, "text")
        assert len(str(told.value)) < 100
    with pytest.raises(InputError, match=r"^str is no vector of features"):
        many("a", "features")


def test_the_artefact_predicts_what_was_measured(fitted):
    from tasks import load_task

    clf = ConvexHeadPipeline.from_pretrained(fitted.artefact)
    test = load_task("digits").splits["test"]
    p = clf.predict_proba(list(test.inputs))
    assert np.mean(p.argmax(axis=1) == test.labels) == pytest.approx(fitted.test_accuracy)
    assert clf.certificate["relative_gap"] == pytest.approx(fitted.relative_gap)


def test_the_head_beats_the_probe_where_it_should(fitted):
    assert fitted.test_accuracy > fitted.linear_probe_test_accuracy
    assert fitted.dual <= fitted.primal
    assert fitted.relative_gap <= 5e-2
    assert fitted.n_train + fitted.n_validation + fitted.n_test == 1797


def test_same_seed_same_artefact_to_the_bit(fitted, tmp_path):
    config = FitConfig(data="digits", backbone="toy:image", out=tmp_path / "again", seed=3)
    run_fit(config, reporter=QuietReporter())
    first = (Path(fitted.artefact) / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first


def test_saved_again_it_is_the_same(fitted, tmp_path):
    clf = ConvexHeadPipeline.from_pretrained(fitted.artefact)
    clf.save_pretrained(tmp_path / "copy")
    again = ConvexHeadPipeline.from_pretrained(tmp_path / "copy")
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert again(image) == clf(image)
    assert again.certificate == clf.certificate


def test_it_travels_to_other_processes_without_its_backbone(fitted):
    clf = ConvexHeadPipeline.from_pretrained(fitted.artefact)
    before = pickle.dumps(clf)
    image = np.zeros((8, 8), np.uint8)
    answer = clf(image)
    sent = pickle.dumps(clf)
    assert len(sent) == len(before)
    assert pickle.loads(sent)(image) == answer


def test_a_backbone_with_other_numbers_is_refused(fitted, tmp_path):
    ConvexHeadPipeline.from_pretrained(fitted.artefact).save_pretrained(tmp_path / "head")
    path = tmp_path / "head" / "config.json"
    config = json.loads(path.read_text())
    config["backbone_fingerprint"]["dim"] = 999
    path.write_text(json.dumps(config))
    clf = ConvexHeadPipeline.from_pretrained(tmp_path / "head")
    with pytest.raises(InputError, match="not the one this head was fitted on"):
        clf(np.zeros((8, 8), np.uint8))


def test_bad_rows_fail_or_are_skipped_as_asked(fitted):
    clf = ConvexHeadPipeline.from_pretrained(fitted.artefact)
    items = [np.zeros((8, 8), np.uint8), b"not an image"]
    with pytest.raises(InputError, match="item 2"):
        clf(items)
    good, bad, last = clf([*items, items[0]], on_bad_row="skip", top_k=2, return_certificate=True)
    assert _same(good, last)
    assert len(good["top_k"]) == 2
    assert (bad["label"], bad["score"], set(bad)) == (None, None, {"label", "score", "skipped"})
    assert "image" in bad["skipped"]
    (alone,) = clf(iter(items[1:]), on_bad_row="skip")
    assert alone == bad
    with pytest.raises(InputError, match="item 4"):
        list(clf(iter([items[0]] * 3 + items[1:]), batch_rows=2))
    with pytest.raises(InputError, match="on_bad_row is fail or skip, not 'ignore'"):
        clf(items, on_bad_row="ignore")
    p = clf.predict_proba(items, on_bad_row="skip")
    assert np.isfinite(p[0]).all()
    assert np.isnan(p[1]).all()


# ---- what else an answer can hold; a small head, nothing to fit ----

SAMPLE = Path(__file__).parent / "artefacts" / "schema-1-first"


@pytest.fixture(scope="module")
def small() -> ConvexHeadPipeline:
    return ConvexHeadPipeline.from_pretrained(SAMPLE)


def test_more_classes_features_and_radius_are_given_when_asked_for(small):
    from convex_heads import robustness_radius

    texts = ["a fine film", "ants and bees"]
    found = small(texts, top_k=2, return_features=True, return_certificate=True)
    plain = small(texts)
    p = small.predict_proba(texts)
    X = np.stack([row["features"] for row in found])
    np.testing.assert_allclose(small.head.predict_proba(X), p, atol=1e-6)
    radius = robustness_radius(small.head.network, X)
    for row, simple, probabilities, r in zip(found, plain, p, radius, strict=True):
        assert {key: row[key] for key in ("label", "score")} == simple
        assert row["top_k"][0] == simple
        assert [each["score"] for each in row["top_k"]] == sorted(probabilities)[:-3:-1]
        assert row["robustness_radius"] == pytest.approx(r)
    # Within the radius nothing changes the label.
    scaling, rng = small.head.network.scaling, np.random.default_rng(0)
    step = rng.normal(size=X.shape) * scaling.keep
    step *= 0.999 * radius[:, None] / np.linalg.norm(step, axis=1, keepdims=True)
    moved = (X + step * scaling.scale).astype(np.float32)
    assert (small.head.predict_proba(moved).argmax(1) == p.argmax(1)).all()
    with pytest.raises(InputError, match="at least one class"):
        small("a", top_k=0)


def test_arrays_and_columns_are_lists_and_one_item_is_no_list(small):
    pandas = pytest.importorskip("pandas")
    texts = ["a fine film", "ants and bees"]
    expected = small(texts)
    column = pandas.Series(texts, index=[7, 3])
    for given in (tuple(texts), np.array(texts), np.array(texts, object), column):
        assert small(given) == expected
        np.testing.assert_array_equal(small.predict_proba(given), small.predict_proba(texts))
    with pytest.raises(InputError, match="put it in a list"):
        small.predict_proba(texts[0])  # and not one answer a letter
    for given in ({"text": "a"}, pandas.DataFrame({"text": texts}), {"a", "b"}, b"a", None):
        with pytest.raises(InputError, match="is no text: give a text, or a list of them"):
            small(given)


def test_a_generator_is_answered_as_it_comes(small):
    taken = []

    def texts():
        for i in range(1000):
            taken.append(i)
            yield f"film {i}"

    answers = small(texts(), batch_rows=10)
    first = next(answers)
    assert len(taken) == 10  # no further than the first batch
    assert _same(first, small("film 0"))
    rest = list(answers)
    assert len(rest) == 999
    assert _same(rest[-1], small("film 999"))


def test_images_come_in_every_form_and_addresses_only_when_allowed(fitted, tmp_path):
    import http.server
    import io
    import threading

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    clf = ConvexHeadPipeline.from_pretrained(fitted.artefact)
    forms = [pixels, image, buffer.getvalue(), tmp_path / "a.png", str(tmp_path / "a.png")]
    answers = clf(forms)
    assert all(_same(answer, answers[0]) for answer in answers)
    assert all(_same(answer, clf(pixels)) for answer in clf(np.stack([pixels, pixels])))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.png"
        with pytest.raises(InputError, match="none is fetched unless"):
            clf(address)
        assert _same(clf(address, allow_urls=True), answers[0])
        with pytest.raises(InputError, match="cannot fetch"):
            clf(address + "x", allow_urls=True)
        lost, found = clf([address + "x", address], allow_urls=True, on_bad_row="skip")
        assert lost["label"] is None and "cannot fetch" in lost["skipped"]
        assert _same(found, answers[0])
        assert np.isnan(clf.predict_proba([address], on_bad_row="skip")).all()
        with pytest.raises(InputError, match="only http and https"):
            clf(f"file://{tmp_path}/a.png", allow_urls=True)
        server.shutdown()


def test_saving_takes_card_and_report_along(fitted, tmp_path):
    ConvexHeadPipeline.from_pretrained(fitted.artefact).save_pretrained(tmp_path / "copy")
    for name in ("README.md", "report.html", "model.safetensors"):
        copied = (tmp_path / "copy" / name).read_bytes()
        assert copied == (Path(fitted.artefact) / name).read_bytes()
