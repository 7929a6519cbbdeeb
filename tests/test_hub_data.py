"""Data sets of the Hub, and every named task in the layout that the Hub has it in."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extractors.errors import InputError, MachineError
from tasks import load_task
from tasks.data.load import Dataset
from tasks.data.registry import TASKS

TEXTS = [f"film number {i}" for i in range(60)]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def sizes(data: Dataset) -> list[int]:
    return [len(rows) for rows in data.splits.values()]


# `datasets` reads a local folder called owner/name through the very code that reads the Hub.


@pytest.fixture
def hub_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    return folder


def test_a_hub_data_set_gives_its_splits_and_label_names(hub_folder):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    for split in ("train", "test"):
        rows = {"text": TEXTS, "label": [1, 0] * 30}
        datasets.Dataset.from_dict(rows, features).to_parquet(hub_folder / f"{split}.parquet")
    data = load_task("hub:owner/name")
    assert (data.name, data.slug) == ("owner/name", "owner-name")
    assert sizes(data) == [50, 10, 60]
    assert data.classes == ("no", "yes")
    rows = data.splits["test"]
    assert [data.classes[label] for label in rows.labels] == ["yes", "no"] * 30
    assert rows.inputs == TEXTS
    assert any("cannot be reached" in note for note in data.notes)


def test_images_of_a_hub_data_set_stay_encoded(hub_folder):
    import datasets

    images = [png(i) for i in range(40)]
    rows = {"img": [{"bytes": image, "path": None} for image in images], "label": [0, 1] * 20}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features).to_parquet(hub_folder / "train.parquet")
    data = load_task("hub:owner/name", image_column="img")
    assert data.modality == "image"
    assert sizes(data) == [28, 4, 8]
    found = [image for rows in data.splits.values() for image in rows.inputs]
    assert sorted(found) == sorted(images)


HIDDEN = ("train", "validation", "test")
MATCHED = ("matched", "mismatched")
# GLUE on the Hub is one repository with a folder for each task; -1 stands for a secret label.
GLUE = [
    ("cola", ("sentence", "label", "idx"), HIDDEN),
    ("wnli", ("sentence1", "label", "sentence2", "idx"), HIDDEN),
    ("mrpc", ("sentence1", "label", "sentence2", "idx"), ("train", "validation", "test")),
    ("rte", ("sentence1", "label", "sentence2", "idx"), HIDDEN),
    ("qnli", ("question", "label", "sentence", "idx"), HIDDEN),
    ("qqp", ("question1", "label", "question2", "idx"), HIDDEN),
    (
        "mnli",
        ("premise", "label", "hypothesis", "idx"),
        ("train", *(f"{split}_{m}" for split in ("validation", "test") for m in MATCHED)),
    ),
]


@pytest.mark.parametrize(
    ("task", "columns", "splits"),
    [
        ("imdb", ("text", "label"), ("train", "test", "unsupervised")),
        ("sst2", ("text", "label", "label_text"), ("train", "validation", "test")),
        ("trec6", ("text", "label_coarse_original"), ("train", "test")),
        ("banking77", ("text", "label"), ("train", "test")),
        ("rotten_tomatoes", ("text", "label"), ("train", "validation", "test")),
        ("ag_news", ("text", "label"), ("train", "test")),
        ("amazon_polarity", ("content", "label", "title"), ("train", "test")),
        ("emotion", ("text", "label"), ("train", "validation", "test")),
        ("cifar10", ("img", "label"), ("train", "test")),
        ("cifar100", ("img", "fine_label", "coarse_label"), ("train", "test")),
        ("mnist", ("image", "label"), ("train", "test")),
        ("fashion_mnist", ("image", "label"), ("train", "test")),
        ("food101", ("image", "label"), ("train", "validation")),
        ("hymenoptera", ("image", "label"), ("train", "validation")),
        ("imagenet-1k", ("image", "label"), ("train", "validation", "test")),
        *GLUE,
    ],
)
def test_named_tasks_in_the_layout_of_the_hub(tmp_path, monkeypatch, task, columns, splits):
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    spec = TASKS[task]
    assert spec.hub is not None
    folder = tmp_path / spec.hub.repository
    folder.mkdir(parents=True)
    if spec.hub.config:  # as the card of the repository tells which files are which
        told = [f"  - split: {split}\n    path: {task}/{split}-*" for split in splits]
        card = f"---\nconfigs:\n- config_name: {task}\n  data_files:\n" + "\n".join(told)
        (folder / "README.md").write_text(card + "\n---\n")
        folder = folder / task
        folder.mkdir()
    n = (8 if spec.n_classes > 500 else 20) * spec.n_classes
    names = [f"class {i}" for i in range(spec.n_classes)]
    column, label, *others = columns
    kind = datasets.Image() if spec.modality == "image" else datasets.Value("string")
    features = {column: kind, label: datasets.ClassLabel(names=names)}
    features |= {other: datasets.Value("string") for other in others}
    for split in splits:
        inputs = [
            {"bytes": png(i % 256), "path": None} if spec.modality == "image" else f"{split} {i}"
            for i in range(n)
        ]
        rows = {column: inputs, label: [i % spec.n_classes for i in range(n)]}
        rows |= {other: ["another column"] * n for other in others}
        if split == "unsupervised" or (spec.hub.splits_as and split.startswith("test")):
            rows[label] = [-1] * n
        made = datasets.Dataset.from_dict(rows, datasets.Features(features))
        end = "-00000-of-00001" if spec.hub.config else ""
        made.to_parquet(folder / f"{split}{end}.parquet")
    data = load_task(task)
    assert (data.name, data.modality) == (task, spec.modality)
    assert data.classes == (spec.classes or tuple(names))
    test = data.splits["test"]
    assert test.labels.tolist() == [i % spec.n_classes for i in range(n)]
    shown = next(s for s, to in (spec.hub.splits_as or {"test": "test"}).items() if to == "test")
    pair = " [SEP] another column" if spec.hub.is_pair else ""
    assert test.inputs[1] == (png(1) if spec.modality == "image" else f"{shown} 1{pair}")


def test_every_task_of_the_hub_has_its_layout_tested():
    tested = test_named_tasks_in_the_layout_of_the_hub.pytestmark[0].args[1]
    assert {task for task, *_ in tested} == {n for n, spec in TASKS.items() if spec.hub}


def test_a_hub_data_set_that_cannot_be_reached(hub_folder):
    with pytest.raises(MachineError, match="no network and nothing cached: other/name"):
        load_task("hub:other/name")
    with pytest.raises(InputError, match="write hub:owner/name"):
        load_task("hub:imdb")
