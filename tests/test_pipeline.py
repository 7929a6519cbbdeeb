"""The pipeline from Python: raw rows in, labels out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from extractors.errors import InputError
from tasks import ConvexHeadPipeline
from tasks.config import FitConfig
from tasks.console import QuietReporter
from tasks.fit import run_fit
from tasks.records import FitRecord


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
    p = clf.predict_proba(items, on_bad_row="skip")
    assert np.isfinite(p[0]).all()
    assert np.isnan(p[1]).all()
