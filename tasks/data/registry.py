"""The named tasks: where each one's rows come from, and its classes.

Two need nothing but the installation (wordnet6, digits). The others are read from a data root,
`ROOT/TASK/train.parquet` and so on, and otherwise from the Hugging Face Hub.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from extractors.base import Modality
from extractors.errors import InputError, MachineError
from tasks.data.columns import PAIR_MARK, ColumnChoice
from tasks.data.raw import WHOLE, RawData, RawSplit


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hugging Face Hub, and those columns that are not called as usual.

    config: which of its data sets. splits_as: the splits to take, and what they are here; None:
    those that are called as usual.
    """

    repository: str
    columns: ColumnChoice = field(default_factory=ColumnChoice)
    config: str | None = None
    splits_as: Mapping[str, str] | None = None

    @property
    def is_pair(self) -> bool:
        """Whether a row is two texts."""
        return PAIR_MARK in (self.columns.text or "")


def _glue(config: str, text: str, validation: str | None) -> HubSource:
    """A task of GLUE; where test labels are secret, `validation` is the test split."""
    return HubSource(
        "nyu-mll/glue",
        ColumnChoice(text=text),
        config,
        None if validation is None else {"train": "train", validation: "test"},
    )


@dataclass(frozen=True)
class TaskSpec:
    """A named task. `rows` is what the full data holds; `hub` is None where it is installed.

    store_dtype: that its features are kept in unless another one is asked for.
    """

    name: str
    modality: Modality
    n_classes: int
    rows: Mapping[str, int]
    about: str
    hub: HubSource | None = None
    classes: tuple[str, ...] | None = None
    store_dtype: Literal["float32", "float16"] = "float32"


TASKS: Mapping[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            "wordnet6",
            "text",
            6,
            {"train": 14622, "validation": 2154, "test": 4179},
            "noun definitions of WordNet: which kind of thing is defined (installed with timm)",
        ),
        TaskSpec(
            "digits",
            "image",
            10,
            {"all": 1797},
            "handwritten digits of 8x8 grey pixels (installed with scikit-learn)",
        ),
        TaskSpec(
            "imdb",
            "text",
            2,
            {"train": 25000, "test": 25000},
            "sentiment of long film reviews",
            HubSource("stanfordnlp/imdb"),
            ("neg", "pos"),
        ),
        TaskSpec(
            "sst2",
            "text",
            2,
            {"train": 6920, "validation": 872, "test": 1821},
            "sentiment of sentences",
            HubSource("SetFit/sst2"),
            ("neg", "pos"),
        ),
        TaskSpec(
            "trec6",
            "text",
            6,
            {"train": 5452, "test": 500},
            "what a question asks for",
            HubSource("SetFit/TREC-QC", ColumnChoice(label="label_coarse_original")),
        ),
        TaskSpec(
            "banking77",
            "text",
            77,
            {"train": 10003, "test": 3080},
            "intent of a bank customer's message",
            HubSource("legacy-datasets/banking77"),
        ),
        TaskSpec(
            "rotten_tomatoes",
            "text",
            2,
            {"train": 8530, "validation": 1066, "test": 1066},
            "sentiment of sentences from film reviews",
            HubSource("cornell-movie-review-data/rotten_tomatoes"),
            ("neg", "pos"),
        ),
        TaskSpec(
            "ag_news",
            "text",
            4,
            {"train": 120000, "test": 7600},
            "topic of news",
            HubSource("fancyzhx/ag_news"),
        ),
        TaskSpec(
            "amazon_polarity",
            "text",
            2,
            {"train": 3600000, "test": 400000},
            "sentiment of product reviews",
            HubSource("fancyzhx/amazon_polarity", ColumnChoice(text="content")),
            ("negative", "positive"),
        ),
        TaskSpec(
            "emotion",
            "text",
            6,
            {"train": 16000, "validation": 2000, "test": 2000},
            "emotion of short messages",
            HubSource("dair-ai/emotion"),
        ),
        # Of GLUE, sst2 is above, and stsb asks for a number between 0 and 5, not for a class.
        TaskSpec(
            "cola",
            "text",
            2,
            {"train": 8551, "validation": 1043},
            "whether a sentence is grammatical English (GLUE)",
            _glue("cola", "sentence", "validation"),
            ("unacceptable", "acceptable"),
        ),
        TaskSpec(
            "mrpc",
            "text",
            2,
            {"train": 3668, "validation": 408, "test": 1725},
            "whether two sentences of the news say the same (GLUE)",
            _glue("mrpc", "sentence1+sentence2", None),
            ("not_equivalent", "equivalent"),
        ),
        TaskSpec(
            "rte",
            "text",
            2,
            {"train": 2490, "validation": 277},
            "whether a text entails a sentence (GLUE)",
            _glue("rte", "sentence1+sentence2", "validation"),
            ("entailment", "not_entailment"),
        ),
        TaskSpec(
            "qnli",
            "text",
            2,
            {"train": 104743, "validation": 5463},
            "whether a sentence answers a question (GLUE)",
            _glue("qnli", "question+sentence", "validation"),
            ("entailment", "not_entailment"),
        ),
        TaskSpec(
            "qqp",
            "text",
            2,
            {"train": 363846, "validation": 40430},
            "whether two questions ask the same (GLUE)",
            _glue("qqp", "question1+question2", "validation"),
            ("not_duplicate", "duplicate"),
        ),
        TaskSpec(
            "mnli",
            "text",
            3,
            {"train": 392702, "validation_matched": 9815},
            "what follows from a premise: the hypothesis, nothing, its opposite (GLUE)",
            _glue("mnli", "premise+hypothesis", "validation_matched"),
            ("entailment", "neutral", "contradiction"),
        ),
        TaskSpec(
            "wnli",
            "text",
            2,
            {"train": 635, "validation": 71},
            "whether a text entails a sentence in which its pronoun is resolved (GLUE)",
            _glue("wnli", "sentence1+sentence2", "validation"),
            ("not_entailment", "entailment"),
        ),
        TaskSpec(
            "cifar10",
            "image",
            10,
            {"train": 50000, "test": 10000},
            "32x32 colour photographs",
            HubSource("uoft-cs/cifar10", ColumnChoice(image="img")),
        ),
        TaskSpec(
            "cifar100",
            "image",
            100,
            {"train": 50000, "test": 10000},
            "32x32 colour photographs",
            HubSource("uoft-cs/cifar100", ColumnChoice(image="img", label="fine_label")),
        ),
        TaskSpec(
            "mnist",
            "image",
            10,
            {"train": 60000, "test": 10000},
            "28x28 grey handwritten digits",
            HubSource("ylecun/mnist"),
        ),
        TaskSpec(
            "fashion_mnist",
            "image",
            10,
            {"train": 60000, "test": 10000},
            "28x28 grey pictures of clothes",
            HubSource("zalando-datasets/fashion_mnist"),
        ),
        TaskSpec(
            "food101",
            "image",
            101,
            {"train": 75750, "validation": 25250},
            "photographs of dishes",
            HubSource("ethz/food101"),
        ),
        TaskSpec(
            "hymenoptera",
            "image",
            2,
            {"train": 244, "val": 153},
            "photographs of ants and bees",
            HubSource("vessl/hymenoptera_data"),
        ),
        TaskSpec(
            "imagenet-1k",
            "image",
            1000,
            {"train": 1281167, "val": 50000},
            "photographs of a thousand kinds of things (ILSVRC 2012)",
            # The labels of its test split are secret.
            HubSource("ILSVRC/imagenet-1k", splits_as={"train": "train", "validation": "test"}),
            store_dtype="float16",
        ),
    )
}

# Byte offsets of WordNet 3.0 are grouped by subject, so a synset id tells the kind of thing.
_WORDNET_KINDS = (
    ("animal", 1300000, 2640000),
    ("artifact", 2640000, 4620000),
    ("food", 7500000, 7980000),
    ("natural object", 9180000, 9490000),
    ("person", 9500000, 10790000),
    ("plant", 11500000, 13200000),
)


def named_columns(data: str, chosen: ColumnChoice) -> dict[str, str | None]:
    """The columns that a person named, and where there is none that of the task, by their kind.

    >>> named_columns("qnli", ColumnChoice())["text"]
    'question+sentence'
    """
    spec = TASKS.get(data)
    usual = spec.hub.columns if spec and spec.hub else ColumnChoice()
    kinds = ("text", "image", "label", "features")
    return {kind: getattr(chosen, kind) or getattr(usual, kind) for kind in kinds}


def resolve_data_root(data_root: str | os.PathLike[str] | None) -> Path | None:
    """The folder to search for named tasks: the one given, else CONVEX_HEADS_DATA, else None.

    Raises InputError when it does not exist.
    """
    given = data_root if data_root is not None else os.environ.get("CONVEX_HEADS_DATA") or None
    if given is None:
        return None
    root = Path(os.path.expanduser(given))
    if not root.is_dir():
        option = "--data-root" if data_root is not None else "CONVEX_HEADS_DATA"
        raise InputError(f"{option} {root} is not a folder")
    return root


def wordnet_file() -> Path:
    """The definitions in timm's package, found without importing timm."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        raise MachineError("wordnet6 comes with timm, which is not installed: pip install timm")
    path = Path(spec.origin).parent / "data" / "_info" / "imagenet_synset_to_definition.txt"
    if not path.is_file():
        raise MachineError(f"this version of timm has no {path.name}: pip install -U timm")
    return path


def read_wordnet6() -> RawData:
    """WordNet's noun definitions in six kinds, with the split that is fixed for ever.

    >>> sorted((name, len(split.ids)) for name, split in read_wordnet6().splits.items())
    [('test', 4179), ('train', 14622), ('validation', 2154)]
    """
    rows: dict[str, list[tuple[str, str, str]]] = {"train": [], "validation": [], "test": []}
    for line in wordnet_file().read_text(encoding="utf-8").splitlines():
        synset, _, definition = line.partition("\t")
        offset = int(synset[1:])
        for kind, low, high in _WORDNET_KINDS:
            if low <= offset < high:
                rows[wordnet_split(synset)].append((synset, definition, kind))
    splits = {}
    for name, triples in rows.items():
        synsets, definitions, kinds = (list(column) for column in zip(*triples, strict=True))
        splits[name] = RawSplit(synsets, definitions, kinds, synsets.__getitem__)
    return RawData("wordnet6", "text", splits)


def wordnet_split(synset: str) -> str:
    """The split of a synset id: two tenths test, one tenth validation, by its SHA-256.

    >>> [wordnet_split(synset) for synset in ("n01440764", "n02084071", "n04254680")]
    ['train', 'validation', 'train']
    """
    tenth = int(hashlib.sha256(synset.encode()).hexdigest()[:8], 16) % 10
    return "test" if tenth < 2 else "validation" if tenth == 2 else "train"


def read_digits() -> RawData:
    """scikit-learn's digits as uint8 arrays (8, 8), 0 black to 255 white."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    ids = [f"row/{i:06d}" for i in range(len(pixels))]
    split = RawSplit(ids, list(pixels), labels.tolist(), ids.__getitem__)
    return RawData("digits", "image", {WHOLE: split})


def read_fashion_mnist(folder: Path, class_names: list[str] | None) -> RawData:
    """The four gzip-compressed idx files as they are published; images as uint8 arrays (28, 28)."""
    splits = {}
    for name, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        ids = [f"{name}/{i:06d}" for i in range(len(images))]
        splits[name] = RawSplit(ids, list(images), labels.tolist(), ids.__getitem__)
    return RawData("fashion_mnist", "image", splits, class_names)


def read_idx(path: Path) -> np.ndarray:
    """One gzip-compressed idx file of unsigned bytes, as a read-only array.

    Layout: two zero bytes, the type (8: unsigned byte), the number of axes, then each axis as a
    big-endian 32-bit integer, then the values. Raises InputError for anything else.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    axes = content[3] if content[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(content, ">i4", axes, 4) if axes and len(content) >= 4 + 4 * axes else ()
    if not axes or len(content) != 4 + 4 * axes + int(np.prod(shape)):
        raise InputError(f"{path} is not a complete idx file of unsigned bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
