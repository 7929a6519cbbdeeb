"""The YAML header of a model card, by which the Hugging Face Hub finds and shows a model."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from extractors.errors import InputError
from tasks.records import FitRecord, RefitRecord

if TYPE_CHECKING:
    from tasks.pipeline import ConvexHeadPipeline

_MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # what the bundled default backbone is
_TASKS = {
    "text": "text-classification",
    "image": "image-classification",
    "features": "tabular-classification",
}
_OWNERS = {"st": "sentence-transformers", "timm": "timm"}  # of ids without one


def card_metadata(record: FitRecord) -> str:
    """The header between the two ``---`` lines, made by the Hub's own library.

    Args:
        record: of the fit. The licence is left to the one who publishes the head.
    """
    from huggingface_hub import EvalResult, ModelCardData

    kind = _TASKS[record.modality]
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=record.task,
            dataset_name=record.task,
            dataset_split="test",
            metric_type=metric,
            metric_value=round(float(value), 6),
        )
        for metric, value in (("accuracy", record.test_accuracy), ("f1", record.test_macro_f1))
    ]
    return ModelCardData(
        library_name="convex-heads",
        pipeline_tag=kind,
        base_model=_base_model(record.backbone),
        tags=["convex-heads", "frozen-features", "convex-optimization"],
        metrics=["accuracy", "f1"],
        datasets=_datasets(record.task),
        model_name=record.task,
        eval_results=results,
    ).to_yaml()


def read_comparison(folder: Path) -> dict[str, Any]:
    """What a model card tells of a comparison: its rows with all training rows, and its verdict.

    Args:
        folder: that ``compare`` has written.

    Raises:
        InputError: it holds no finished comparison.
    """
    try:
        found = json.loads((folder / "summary.json").read_text("utf-8"))
        rows = [r for r in found["rows"] if r["shots"] is None and r["train_rows"] is None]
        words = [
            sentence
            for part in found["verdict"]
            if part["shots"] is None and part["train_rows"] is None
            for sentence in part["text"]
        ]
        return {
            "task": found["task"],
            "seeds": len(found["seeds"]),
            "n_test": found["n_test"],
            "rows": sorted(rows, key=lambda r: -r["test_accuracy"]),
            "words": words,
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--comparison {folder}: there is no finished comparison (summary.json) in it: run "
            "`convex-heads compare` with this --out first"
        ) from error


def _datasets(task: str) -> list[str] | None:
    """The Hub's id of a data set; None where it has none (files of one's own).

    >>> _datasets("imdb"), _datasets("reviews")
    (['stanfordnlp/imdb'], None)
    """
    from tasks.registry import TASKS

    if task.startswith("hub:"):
        return [task.removeprefix("hub:").split(":")[0]]
    spec = TASKS.get(task)
    return None if spec is None or spec.hub is None else [spec.hub.repository]


def _base_model(backbone: str) -> str | None:
    """The Hub's id of a backbone; None where it has none (a local folder, a toy).

    >>> _base_model("timm:resnet18.a1_in1k@main"), _base_model("toy:text-32")
    ('timm/resnet18.a1_in1k', None)
    """
    if backbone == "minilm":
        return _MINILM
    source, _, rest = backbone.partition(":")
    model = rest.split("@")[0].removeprefix("hf-hub:")
    local = model.startswith("local-dir:") or PurePath(model).is_absolute()
    if source not in ("st", "hf", "timm") or local:
        return None
    owner = _OWNERS.get(source)
    return model if "/" in model or owner is None else f"{owner}/{model}"


def write_refit_card(folder: Path, record: RefitRecord, pipeline: ConvexHeadPipeline) -> None:
    """Writes the model card of a head that was solved again on more rows."""
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        library_name="convex-heads",
        pipeline_tag=_TASKS[pipeline.modality],
        base_model=_base_model(pipeline.backbone),
        tags=["convex-heads", "frozen-features", "convex-optimization"],
        metrics=["accuracy"],
    ).to_yaml()
    from tasks.report import templates

    page = templates(html=False).get_template("refit_card.md.j2")
    text = page.render(r=record, backbone=pipeline.backbone, metadata=metadata)
    (folder / "README.md").write_text(text, encoding="utf-8")
