"""The verb `refit`: more rows, or more classes, for a head that is there.

The backbone, the standardisation, the gates and the absolute penalty stay, so the program is the
one that a fit from scratch on all rows would solve with them, and its certificate says how far from
that optimum the new head is. Rows of the first fit come from its feature store.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convex_heads.decode import Network, ReluNetwork
from convex_heads.limits import Limits
from convex_heads.programs import default_tolerance
from convex_heads.refit import solve_more
from convex_heads.solution import Status
from extractors.base import Rows
from extractors.errors import InputError
from extractors.extract import extract
from extractors.store import FeatureStore, StoredRows, default_cache_dir
from tasks.artefact import CONFIG_NAME, Head, check_destination, write_artefact
from tasks.calibration import fit_temperature
from tasks.config_files import as_command
from tasks.config_saved import RefitConfig
from tasks.console import Reporter
from tasks.data.classes import left_out_before, left_out_note, only_classes
from tasks.data.columns import ColumnChoice, columns_before
from tasks.data.divide import NumberedSplit, divide
from tasks.data.labels import encode_labels, row_weights
from tasks.data.leak_words import leaks_in_words
from tasks.data.leaks import find_leaks
from tasks.data.load import check_rows, content_digests
from tasks.data.raw import WHOLE
from tasks.data.registry import resolve_data_root
from tasks.data.sources import read_source
from tasks.fit_head import unproven_note
from tasks.metrics import evaluate
from tasks.pipeline import ConvexHeadPipeline
from tasks.records import RefitRecord

_SPLITS = ("train", "validation", "test")


def run_refit(config: RefitConfig, *, reporter: Reporter) -> RefitRecord:
    """Adds labelled rows to a head and writes it as a new artefact.

    Args:
        config: which head, which rows, where to.
        reporter: hears of progress.

    Raises:
        InputError: a head that cannot be solved again, rows that cannot be used, a store that is
            gone or of another backbone.
    """
    began = time.perf_counter()
    check_destination(config.out)
    if (config.out / CONFIG_NAME).is_file():
        reporter.note(f"--out {config.out} holds a head: it is replaced when the new one is there")
    pipeline = ConvexHeadPipeline.from_pretrained(
        config.artefact,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        backbone=config.backbone,
    )
    network = pipeline.head.network
    certificate = pipeline.certificate
    record: dict[str, Any] = pipeline.facts.get("record", {})
    assert isinstance(network, Network | ReluNetwork)
    activation = "relu" if isinstance(network, ReluNetwork) else "gated_relu"
    if not isinstance(certificate.get("beta"), float | int):
        raise InputError(f"{config.artefact} does not say its penalty: fit again on all rows")
    if pipeline.changes:
        raise InputError(
            f"{config.artefact} was made by `finetune`, and the store of its first rows holds "
            "features of the backbone before that: run `convex-heads finetune` again on all rows"
        )
    before = [_open_store(path, config.cache_dir, pipeline) for path in _stores(pipeline)]
    new, ids, left_out = _new_rows(config, pipeline, reporter)
    new_names = [name for name in new.classes if name not in pipeline.classes]
    classes = (*pipeline.classes, *new_names)
    first: dict[str, StoredRows] = {}
    added: dict[str, StoredRows] = {}
    counts: dict[str, int] = {}
    for split in _SPLITS:
        first[split] = _joined(
            *(_stored(store, split, None, classes, network.dim) for store in before)
        )
        added[split] = _stored(new, split, ids[split], classes, network.dim)
        counts[f"{split}_before"] = len(first[split].ids)
        counts[f"{split}_new"] = len(added[split].ids)
    if not counts["train_before"]:
        raise InputError(f"the store {before[0].path} holds no training rows: fit again")
    expected = record.get("n_train")
    if isinstance(expected, int) and expected != counts["train_before"]:
        reporter.note(
            f"the store holds {counts['train_before']:,} training rows, the head was fitted on "
            f"{expected:,} of them: all are used now"
        )
    both = {split: _joined(first[split], added[split]) for split in _SPLITS}
    train, validation = both["train"], both["validation"]
    with reporter.stage("leaks", total=None):
        leaks = find_leaks(both).as_record()
    notes = []
    if leaks["examples"]:
        notes.append(f"duplicates, of new rows and those of the first fit: {leaks_in_words(leaks)}")
    with reporter.stage("refit", total=None):
        solved = solve_more(
            network,
            train.features,
            train.labels,
            n_classes=len(classes),
            beta=float(certificate["beta"]),
            penalty=str(record.get("penalty", "group")),
            omega=row_weights(_class_weight(record), train.labels),
            limits=Limits(
                config.tolerance or default_tolerance(activation, network.loss),
                max_seconds=config.max_seconds,
            ),
            seed=config.seed,
        )
    found = solved.network
    temperature = None
    if record.get("calibration_temperature", 1.0) is not None:  # None: the first one is not either
        scores = found.scores(validation.features)
        temperature = fit_temperature(scores, found.loss, validation.labels)
    head = Head(found, classes, 1.0 if temperature is None else temperature)
    measured = {
        name: evaluate(by.predict_proba(rows.features), rows.labels)
        for name, by, rows in (
            ("all", head, both["test"]),
            ("of the first fit, old head", pipeline.head, first["test"]),
            ("of the first fit", head, first["test"]),
            ("new", head, added["test"]),
        )
        if rows.ids
    }

    def accuracy(of: str) -> float | None:
        return measured[of].accuracy if of in measured else None

    if solved.status is not Status.CONVERGED:
        notes.append(unproven_note(solved.status, solved.certificate.relative_gap))
    for note in notes:
        reporter.note(note)
    made = RefitRecord(
        artefact=str(config.out),
        before=config.artefact,
        data=config.data,
        classes=classes,
        new_classes=classes[len(pipeline.classes) :],
        n=counts,
        activation=activation,
        loss=found.loss,
        beta=solved.certificate.beta,
        primal_before=solved.primal_before,
        primal=solved.certificate.primal,
        dual=solved.certificate.dual,
        relative_gap=solved.certificate.relative_gap,
        passes=int(np.ceil(solved.passes)),
        test_accuracy=measured["all"].accuracy,
        test_accuracy_interval=measured["all"].accuracy_interval,
        test_accuracy_before_rows=accuracy("of the first fit"),
        test_accuracy_before_rows_old_head=accuracy("of the first fit, old head"),
        test_accuracy_new_rows=accuracy("new"),
        calibration_temperature=temperature,
        store=str(before[0].path),
        new_store=str(new.path),
        seconds=round(time.perf_counter() - began, 3),
        seed=config.seed,
        leaks=leaks,
        notes=tuple(notes),
        commands=(*_commands(pipeline), as_command("refit", config)),
    )
    facts = {
        "certificate": solved.certificate._asdict(),
        "backbone_options": pipeline.describe()["backbone_options"],
        "columns": pipeline.facts.get("columns"),
        # What a further refit needs: the store of all rows so far is more than one.
        "record": {
            **record,
            "n_train": len(train.ids),
            "n_validation": len(validation.ids),
            "n_test": len(both["test"].ids),
            "test_accuracy": measured["all"].accuracy,
            "classes": list(classes),
            "left_out_classes": [name for name in left_out if name not in classes],
        },
        "refit": made,
        "stores": [str(store.path.absolute()) for store in (*before, new)],
    }

    def write_more(folder: Path) -> None:
        from tasks.reports.card import write_refit_card

        write_refit_card(folder, made, pipeline, data=new.manifest.task, measured=measured)

    write_artefact(
        config.out,
        head,
        modality=pipeline.modality,
        backbone=pipeline.backbone,
        backbone_fingerprint=pipeline.extractor.fingerprint(),
        facts=facts,
        write_more=write_more,
    )
    return made


def _class_weight(record: Mapping[str, Any]) -> str:
    """As the head was fitted; records of older versions have it in their command alone.

    >>> _class_weight({"command": "convex-heads fit d.csv --class-weight balanced --out head"})
    'balanced'
    """
    balanced = "--class-weight balanced" in str(record.get("command"))
    return str(record.get("class_weight", "balanced" if balanced else "none"))


def _commands(pipeline: ConvexHeadPipeline) -> list[str]:
    """Those that made the earlier head."""
    first = [pipeline.facts.get("record", {}).get("command")]
    before = pipeline.facts.get("refit", {}).get("commands") or first
    return [command for command in before if isinstance(command, str) and command]


def _stores(pipeline: ConvexHeadPipeline) -> list[Path]:
    """Where the features of all rows so far lie."""
    named = pipeline.facts.get("stores") or [pipeline.facts.get("record", {}).get("store")]
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise InputError("the artefact does not say which store it was fitted from: fit again")
    return [Path(each) for each in named]


def _open_store(path: Path, cache_dir: Path | None, pipeline: ConvexHeadPipeline) -> FeatureStore:
    if not path.is_dir():  # perhaps it has moved with its cache directory
        moved = (cache_dir or default_cache_dir()) / "stores" / path.name
        if not moved.is_dir():
            raise InputError(
                f"the feature store of the first rows, {path}, is gone: name the cache directory "
                "it is in now with --cache-dir, make it again with `convex-heads extract`, or fit "
                "again on all rows"
            )
        path = moved
    store = FeatureStore.open(path)
    if store.manifest.fingerprint.get("extractor") != pipeline.identity["backbone_fingerprint"]:
        raise InputError(f"the store {path} is of another backbone than the head: fit again")
    return store


def _stored(
    store: FeatureStore,
    split: str,
    ids: list[str] | None,
    classes: tuple[str, ...],
    dim: int,
) -> StoredRows:
    """A split's rows with labels that number these classes; None takes all of them."""
    unknown = [name for name in store.classes if name not in classes]
    if unknown:
        raise InputError(f"the store {store.path} has the class '{unknown[0]}', the head has not")
    if split not in store.splits or ids == []:
        return StoredRows([], np.zeros(0, np.int64), np.zeros((0, dim), np.float32), None)
    rows = store.read(split, ids)
    place = np.array([classes.index(name) for name in store.classes])
    return rows._replace(labels=place[rows.labels], features=np.asarray(rows.features))


def _joined(*parts: StoredRows) -> StoredRows:
    return StoredRows(
        [row for part in parts for row in part.ids],
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.features for part in parts]),
        None,
    )


def _new_rows(
    config: RefitConfig, pipeline: ConvexHeadPipeline, reporter: Reporter
) -> tuple[FeatureStore, dict[str, list[str]], list[str]]:
    """A store with the features of the new rows, and the ids of each split that are in it.

    And the classes whose rows were left out, now and before.
    """
    choice = ColumnChoice(
        config.text_column,
        config.image_column,
        config.label_column,
        config.features_column,
        columns_before(pipeline.facts),
    )
    raw = read_source(config.data, resolve_data_root(config.data_root), choice)
    if raw.modality != pipeline.modality:
        raise InputError(
            f"{raw.name} holds {raw.modality} rows, this head was fitted on {pipeline.modality}"
        )
    splits, skipped = check_rows(raw, config.on_bad_row)
    before = left_out_before(pipeline.facts)
    splits, others = only_classes(splits, raw.class_names, config.classes, before)
    if others and not config.classes:
        reporter.note(left_out_note(others))
    classes, labels = encode_labels(splits, raw.class_names)
    rows = {
        name: NumberedSplit(split.ids, split.inputs, labels[name], content_digests(split))
        for name, split in splits.items()
    }
    if WHOLE not in rows and "train" not in rows:
        raise InputError(f"{raw.name} has no rows to train on")
    rows = _divided(rows, reporter)
    content = hashlib.sha256(b"refit")
    for name, split in rows.items():
        for row, label, digest in zip(split.ids, split.labels, split.digests, strict=True):
            content.update(f"{name}\0{row}\0{classes[label]}\0".encode())
            content.update(digest)
    with reporter.stage("extract", sum(len(split.ids) for split in rows.values())) as stage:
        found = extract(
            {
                name: Rows(list(split.ids), list(split.inputs), split.labels)
                for name, split in rows.items()
                if len(split.ids)
            },
            pipeline.extractor,
            task=raw.name,
            classes=classes,
            data_fingerprint={"refit": content.hexdigest()},
            cache_dir=config.cache_dir,
            on_bad_row=config.on_bad_row,
            progress=stage.advance,
        )
    left_out = {row.id for row in found.skipped} | {row for row, _ in skipped}
    if left_out:
        reporter.note(f"rows left out because they could not be used: {len(left_out)}")
    ids = {name: [row for row in split.ids if row not in left_out] for name, split in rows.items()}
    if not ids["train"]:
        raise InputError(f"{config.data} holds no row to train on")
    return found.store, ids, list(dict.fromkeys((*before, *others)))


def _divided(rows: dict[str, NumberedSplit], reporter: Reporter) -> dict[str, NumberedSplit]:
    """Divided as `fit` does it; rows too few for that are all trained on."""
    try:
        return divide(rows)
    except InputError:
        train = rows.get(WHOLE) or rows["train"]
        nothing = train.take(np.zeros(0, np.int64))
        reporter.note(f"{len(train.ids)} new rows are too few to hold some out: all are trained on")
        kept = {name: rows.get(name, nothing) for name in ("validation", "test")}
        return {"train": train, **kept}
