"""What a model card tells: the header by which the Hub finds a model, and words about it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from extractors.errors import InputError
from extractors.pairs import PAIR_SEPARATOR
from tasks.data.columns import PAIR_MARK
from tasks.fetch import folder_of
from tasks.records import RefitRecord

if TYPE_CHECKING:
    from tasks.metrics import Metrics
    from tasks.pipeline import ConvexHeadPipeline

_MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # what the bundled default backbone is
_TASKS = {
    "text": "text-classification",
    "image": "image-classification",
    "features": "tabular-classification",
}
_REFIT_CERTIFICATE = (
    "Training this head is a convex problem with a lower bound that no head with these gates and "
    "this penalty can beat. It is a statement about the training objective on all rows, and not "
    "about the accuracy on new data."
)
_OWNERS = {"st": "sentence-transformers", "timm": "timm"}  # of ids without one


def card_metadata(
    modality: str,
    backbone: str,
    data: Sequence[str],
    commands: Sequence[str],
    *,
    accuracy: float,
    macro_f1: float,
) -> str:
    """The header between the two ``---`` lines, made by the Hub's own library.

    The licence is left to the one who publishes the head.

    Args:
        modality: of the head.
        backbone: its name, as ``load_extractor`` takes it.
        data: names of the data sets whose rows it was fitted and measured on.
        commands: that fitted it, which tell those of the Hub from files of the same name.
        accuracy: on their test rows.
        macro_f1: the same.
    """
    from huggingface_hub import EvalResult, ModelCardData

    kind, name = _TASKS[modality], " and ".join(data)
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=name,
            dataset_name=name,
            dataset_split="test",
            metric_type=metric,
            metric_value=round(float(value), 6),
        )
        for metric, value in (("accuracy", accuracy), ("f1", macro_f1))
    ]
    return ModelCardData(
        library_name="convex-heads",
        pipeline_tag=kind,
        base_model=_base_model(backbone),
        tags=["convex-heads", "frozen-features", "convex-optimization"],
        metrics=["accuracy", "f1"],
        datasets=[found for each in commands if (found := _dataset(each)) is not None] or None,
        model_name=name,
        eval_results=results,
    ).to_yaml()


def shown_backbone(backbone: str) -> str:
    """Its name; of a local folder the last part: a card may travel, folders do not.

    >>> shown_backbone("timm:local-dir:/home/somebody/net"), shown_backbone("minilm")
    ('timm:net', 'minilm')
    """
    folder = folder_of(backbone)
    return f"{backbone.partition(':')[0]}:{PurePath(folder).name}" if folder else backbone


def rows_in_words(modality: str) -> str:
    """What a head of this modality reads.

    >>> rows_in_words("text")
    'texts'
    """
    return {"text": "texts", "image": "images"}.get(modality, "vectors of features")


def _settings(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def a_text(directory: Path) -> str:
    """What a text for this head looks like: one, or two where it was fitted on two columns."""
    columns = _settings(directory).get("columns") or {}
    pair = PAIR_MARK in (columns.get("text") or "")
    return f"first text{PAIR_SEPARATOR}second text" if pair else "a text"


def revision_facts(directory: Path) -> list[tuple[str, str]]:
    """The commit or the weights of the backbone, where the artefact's settings say them."""
    found = _settings(directory).get("backbone_fingerprint", {})
    names = {
        "revision": "backbone revision",
        "weights_sha256": "backbone weights (sha256)",
        "changed_sha256": "fine-tuned weights (sha256)",
    }
    return [(said, str(found[name])) for name, said in names.items() if name in found]


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


def _dataset(command: str) -> str | None:
    """The Hub's id of the data set of a command; None where it has none (files of one's own).

    >>> _dataset("convex-heads fit imdb --seed 1"), _dataset("convex-heads refit head ./imdb.csv")
    ('stanfordnlp/imdb', None)
    """
    from tasks.data.registry import TASKS

    words = shlex.split(command)[1:]
    data = "".join(words[2:3] if words[:1] == ["refit"] else words[1:2])
    if data.startswith("hub:"):
        return data.removeprefix("hub:").split(":")[0]
    spec = TASKS.get(data)
    return None if spec is None or spec.hub is None else spec.hub.repository


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


def write_refit_card(
    folder: Path,
    record: RefitRecord,
    pipeline: ConvexHeadPipeline,
    *,
    data: str,
    measured: Mapping[str, Metrics],
) -> None:
    """Writes the model card of a head that was solved again on more rows.

    Args:
        folder: the artefact in the making.
        record: of the refit.
        pipeline: the earlier head.
        data: the name of the new rows.
        measured: which test rows -> what was measured on them, those of ``all`` among them.
    """
    from tasks.reports.pages import templates

    names = (str(pipeline.facts["record"].get("task", "the first rows")), data)
    rows = (
        f"{record.n[f'{split}_before']:,} + {record.n[f'{split}_new']:,} {said}"
        for split, said in (("train", "training"), ("validation", "validation"), ("test", "test"))
    )
    facts = [
        ("data", " and ".join(names)),
        ("rows", ", ".join(rows)),
        ("classes", f"{len(record.classes)}: {', '.join(record.classes)}"),
        ("new among them", ", ".join(record.new_classes) or "none"),
        ("seed", str(record.seed)),
        *revision_facts(folder),
    ]
    page = templates(html=False).get_template("refit_card.md.j2")
    text = page.render(
        r=record,
        metadata=card_metadata(
            pipeline.modality,
            pipeline.backbone,
            names,
            record.commands,
            accuracy=measured["all"].accuracy,
            macro_f1=measured["all"].macro_f1,
        ),
        backbone=shown_backbone(pipeline.backbone),
        modality=pipeline.modality,
        a_text=a_text(folder),
        rows_are=rows_in_words(pipeline.modality),
        dim=pipeline.head.network.dim,
        n_classes=len(record.classes),
        measured=[
            (name, m.n, m.accuracy, m.accuracy_interval, (m.macro_f1, m.nll, m.ece))
            for name, m in measured.items()
        ],
        ece=measured["all"].ece,
        certificate=_REFIT_CERTIFICATE,
        columns=[
            ("objective of the earlier head", f"{record.primal_before:.6g}"),
            ("objective", f"{record.primal:.6g}"),
            ("lower bound", f"{record.dual:.6g}"),
            ("relative gap", f"{record.relative_gap:.2g}"),
        ],
        facts=facts,
        commands=record.commands,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
