"""What an artefact is, on one screen: the questions a person asks, and how to use it.

Settings may be anybody's, or of an older release: what they do not say, or say in another kind than
`fit` writes it, is left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from tasks.fetch import folder_of
from tasks.reports.card import rows_in_words

if TYPE_CHECKING:
    from tasks.info import Inspection

_CLASSES_LENGTH = 150
_ACTIVATIONS = {"gated_relu": "gated ReLU", "relu": "ReLU"}
_EXAMPLES = {"text": '--text "..."', "image": "--input FOLDER_OF_IMAGES"}


def artefact_lines(found: Inspection) -> Iterator[tuple[str, str]]:
    """Questions and answers, in reading order.

    Args:
        found: of kind ``artefact``.
    """
    facts = found.facts
    record, refit = _part(facts, "record"), _part(facts, "refit")
    modality = str(facts.get("modality"))
    activation = str(facts.get("activation", "gated_relu"))  # the first releases had no other
    activation = _ACTIVATIONS.get(activation, activation)
    yield "what", f"a {activation} head for {rows_in_words(modality)}, {facts.get('loss')} loss"
    classes = facts.get("classes") or []
    names = shorten(", ".join(map(str, classes)), _CLASSES_LENGTH, placeholder=" ...")
    yield "classes", f"{len(classes):,}: {names}"
    yield "backbone", _backbone(facts, record)
    yield "fitted on", _rows(record, refit)
    yield "accuracy", _accuracy(record, refit)
    relu = facts.get("activation") == "relu"
    yield "certificate", _certificate(_part(facts, "certificate"), relu=relu)
    yield "calibration", _calibration(facts, {} if refit else record)
    path = shlex.quote(found.path)
    example = _EXAMPLES.get(modality, "--input FEATURES.npy")
    yield "use", f"convex-heads predict {path} {example}"
    yield "", f"convex-heads serve {path}"
    yield "in Python", f"ConvexHeadPipeline.from_pretrained({found.path!r})"
    yield "all of it", f"convex-heads info {path} --json"


def _backbone(facts: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    name = str(facts.get("backbone"))
    said = name
    if dim := _number(record, "dim"):
        said += f", {dim:,.0f} features"
    if "changed_sha256" in _part(facts, "backbone_fingerprint"):
        blocks = _number(record, "unfreeze") or 0
        top = "top block, fine-tuned, is" if blocks == 1 else "top blocks, fine-tuned, are"
        said += f"; its {top} in the artefact"
    if folder_of(name):
        said += "; a folder of this machine, which is no part of the artefact"
    return said


def _rows(record: Mapping[str, Any], refit: Mapping[str, Any]) -> str:
    n = _part(refit, "n")
    if n:
        first, more = _number(n, "train_before") or 0, _number(n, "train_new") or 0
        task = record.get("task", "its first rows")
        return f"{task}, {first:,.0f} training rows, and {more:,.0f} more of {refit.get('data')}"
    parts = [
        f"{count:,.0f} {split}"
        for split in ("train", "validation", "test")
        if (count := _number(record, f"n_{split}")) is not None
    ]
    rows = f"{', '.join(parts)} rows" if parts else ""
    return ": ".join(filter(None, (str(record.get("task") or ""), rows)))


def _accuracy(record: Mapping[str, Any], refit: Mapping[str, Any]) -> str:
    found = refit or record
    accuracy = _number(found, "test_accuracy")
    if accuracy is None:
        return ""
    said = f"{accuracy:.4f} on test rows"
    interval = found.get("test_accuracy_interval")
    if (
        isinstance(interval, Sequence)
        and len(interval) == 2
        and all(isinstance(x, int | float) for x in interval)
    ):
        said += f", 95% interval {interval[0]:.4f} to {interval[1]:.4f}"
    others = {"linear_probe_test_accuracy": "linear probe", "frozen_test_accuracy": "frozen head"}
    for key, name in others.items():
        if not refit and (other := _number(record, key)) is not None:
            said += f"; {name} {other:.4f}"
    return said


def _certificate(proof: Mapping[str, Any], *, relu: bool) -> str:
    gap, beta, most = (_number(proof, key) for key in ("relative_gap", "beta", "beta_max"))
    if gap is None:
        return ""
    # What is convex of a ReLU head is the program of the activation patterns it ended with.
    best = "the best there can be for its own patterns" if relu else "the best there can be"
    said = f"within {gap:.1e} of {best} (relative gap)"
    if beta is not None and most:
        said += f" at beta {beta:.3g}, {beta / most:.3g} of beta_max"
    active, offered = (_number(proof, key) for key in ("active_gates", "n_gates"))
    if active is not None and offered is not None:
        said += f"; {active:,.0f} of {offered:,.0f} gates in use"
    return said


def _calibration(facts: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    temperature, error = _number(facts, "temperature"), _number(record, "test_ece")
    said = "" if temperature is None else f"temperature {temperature:.3g}"
    if facts.get("loss") == "squared":
        said = "none, the squared loss has no temperature"
    return said if error is None else f"{said}, expected calibration error {error:.3f}"


def _part(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = facts.get(name)
    return value if isinstance(value, Mapping) else {}


def _number(facts: Mapping[str, Any], name: str) -> float | None:
    value = facts.get(name)
    return value if isinstance(value, int | float) else None
