"""A head for other programs: a torch module, a ``torch.export`` program, an ONNX file.

The module takes raw features: standardisation is part of it. What is written is checked before it
appears: the file is read back, run on batches of several sizes, and compared with the head.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from extractors.errors import InputError, MachineError
from extractors.storage import (
    TEMPORARY_PREFIX,
    make_folder,
    plain_disk_errors,
    write_atomically,
)
from tasks.config_saved import ExportConfig
from tasks.console import Reporter
from tasks.export_inputs import files_beside
from tasks.records import ExportRecord
from tasks.torch_head import TorchHead

if TYPE_CHECKING:
    from extractors.graph import Graph
    from tasks.artefact import Head

TOLERANCE = 1e-4  # of probabilities, exported against the head
_OUTPUTS = ("logits", "probabilities")
_MOST_ONNX = 2**31 - 2**20  # bytes; a protobuf message has less than 2 GB


def set_classifier(model: Any, head: TorchHead) -> Any:
    """Puts a head where a timm model has its classifier, in place, and returns the model.

    What ``model.reset_classifier(num_classes)`` does with a new linear layer, with a head that is
    fitted already: afterwards ``model(pixels)`` are the head's logits.

    Args:
        model: a timm model.
        head: fitted on this model's pooled features.

    Raises:
        InputError: the model does not say where its classifier is, or has several, or its features
            are not as wide as the head's.

    Example:
        >>> from extractors.torchvision_compat import ensure_torchvision_imports
        >>> _ = ensure_torchvision_imports()
        >>> import timm
        >>> from convex_heads.decode import ReluNetwork
        >>> from convex_heads.scaling import Scaling
        >>> model = timm.create_model("test_byobnet", pretrained=False).eval()
        >>> d = model.num_features
        >>> scaling = Scaling(np.zeros(d, "f"), np.ones(d, "f"), np.ones(d, bool))
        >>> network = ReluNetwork(scaling, np.ones((4, d + 1), "f"), np.ones((4, 3), "f"),
        ...                       np.zeros(3, "f"), "softmax")
        >>> set_classifier(model, TorchHead(network))(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 3])
    """
    place = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    if not isinstance(place, str) or not hasattr(model, "reset_classifier"):
        raise InputError(
            "this model does not name one classifier of its own (timm's pretrained_cfg); put the "
            "head behind its pooled features instead"
        )
    parent, _, name = place.rpartition(".")
    owner = model.get_submodule(parent)
    before = getattr(owner, name)
    model.reset_classifier(0)
    width = getattr(before, "in_features", None) or getattr(model, "head_hidden_size", None)
    if width is not None and int(width) != head.in_features:
        setattr(owner, name, before)
        raise InputError(
            f"the model gives {int(width)} features, the head was fitted on {head.in_features}: "
            "fit it on this model"
        )
    setattr(owner, name, head)
    model.num_classes = head.out_features
    return model


class _Answers(nn.Module):
    """(backbone and) head with both outputs."""

    def __init__(self, head: TorchHead, backbone: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = inputs[0] if self.backbone is None else self.backbone(*inputs)
        logits = self.head(features)
        return logits, self.head.probabilities_of(logits)


def run_export(config: ExportConfig, *, reporter: Reporter) -> ExportRecord:
    """Writes a head, alone or behind its backbone, for torch or for ONNX.

    Args:
        config: which artefact, which format, where to.
        reporter: hears of progress.

    Raises:
        InputError: what cannot be exported, or a missing package.
        MachineError: what was written does not compute what the head does, or the disk refuses.
    """
    from tasks.pipeline import ConvexHeadPipeline

    kind = config.kind
    if kind == "onnx":
        _need_onnx()
    if config.out.is_dir():
        raise InputError(f"--out {config.out} is a folder: name a file, such as head.onnx")
    pipeline = ConvexHeadPipeline.from_pretrained(
        config.artefact,
        device="cpu",
        trust_remote_code=config.trust_remote_code,
        backbone=config.backbone,
    )
    graph: Graph | None = None
    if config.with_backbone:
        if pipeline.modality == "features":
            raise InputError(
                "this head was fitted on features computed elsewhere, there is no backbone to "
                "export: leave out --with-backbone"
            )
        from extractors.graph import backbone_graph

        graph = backbone_graph(pipeline.extractor)
    make_folder(config.out.absolute().parent, "--out")
    facts = pipeline.describe()
    if graph is not None and graph.preprocessing is not None:
        facts = {**facts, "preprocessing": graph.preprocessing}
    with reporter.stage("export", total=None):
        difference, opset = export_head(
            pipeline.head, config.out, format=kind, graph=graph, facts=facts
        )
    return ExportRecord(
        artefact=config.artefact,
        out=str(config.out),
        format=kind,
        with_backbone=config.with_backbone,
        inputs=("features",) if graph is None else graph.names,
        outputs=_OUTPUTS,
        classes=pipeline.classes,
        opset=opset,
        max_difference=difference,
        bytes=config.out.stat().st_size,
        beside=tuple(map(str, files_beside(graph, config.out))),
    )


def export_head(
    head: Head,
    out: Path,
    *,
    format: str,
    graph: Graph | None = None,
    facts: dict[str, Any] | None = None,
    rows: Sequence[Any] | None = None,
) -> tuple[float, int | None]:
    """Writes one file and checks it.

    Args:
        head: what predicts.
        out: the file; it appears whole or not at all. Beside that of a backbone appears how its
            inputs are made: NAME.tokenizer.json of texts, NAME.preprocessing.json of images.
        format: "onnx", or "torch" for a ``torch.export`` program (.pt2).
        graph: the backbone, or None for the head alone.
        facts: JSON-able, kept in the file's metadata.
        rows: raw rows (features without a backbone) to check with; None takes rows made up for it.

    Returns:
        The largest difference of probabilities to those of the head, and the ONNX opset.

    Raises:
        InputError: too large for ONNX.
        MachineError: the difference is above ``TOLERANCE``, or the exporter failed.
    """
    module = _Answers(head.to_torch(), None if graph is None else graph.module).eval()
    module.requires_grad_(False)
    size = sum(each.numel() * each.element_size() for each in module.state_dict().values())
    if format == "onnx" and size > _MOST_ONNX:
        raise InputError(
            f"backbone and head have {size / 2**30:.1f} GB, and an ONNX file holds less than 2: "
            "use --format torch, or export the head alone"
        )
    batches = _check_batches(head, graph, rows)
    program = _traced(module, batches[0][0], tokens=graph is not None and graph.tokens)
    temporary = out.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{out.name}")
    opset = None
    try:
        with plain_disk_errors(out.parent, "--out"):
            if format == "onnx":
                names = ("features",) if graph is None else graph.names
                opset = _write_onnx(program, temporary, names, facts or {})
                run = _onnx_runner(temporary, names)
            else:
                kept = json.dumps(facts or {}, ensure_ascii=False)
                with _quietly(), temporary.open("wb") as file:
                    torch.export.save(program, file, extra_files={"convex_heads.json": kept})
                run = _torch_runner(temporary)
        difference = 0.0
        for inputs, expected in batches:
            found = run(inputs)
            difference = max(difference, float(np.abs(found - expected).max()))
        if not difference <= TOLERANCE:
            raise MachineError(
                f"the exported {format} program differs from the head by {difference:.1e}, more "
                f"than {TOLERANCE:.0e}: nothing was written"
            )
        for path, content in files_beside(graph, out).items():
            write_atomically(path, content, "--out")
        with plain_disk_errors(out.parent, "--out"):
            temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return difference, opset


def _check_batches(
    head: Head, graph: Graph | None, rows: Sequence[Any] | None
) -> list[tuple[tuple[torch.Tensor, ...], np.ndarray]]:
    """Batches of 3, 1 and 5 inputs (fewer rows are repeated), and the head's own answers."""
    from extractors.encode import encode_rows

    if rows is None:
        rows = _made_up(head, graph)
    batches = []
    for size in (3, 1, 5):
        batch = [rows[i % len(rows)] for i in range(size)]
        if graph is None:
            features = np.asarray(batch, np.float32)
            inputs: tuple[torch.Tensor, ...] = (torch.from_numpy(features),)
        else:
            ids = [str(i) for i in range(size)]
            features = encode_rows(graph.extractor, batch, ids).features
            inputs = graph.inputs(batch)
        batches.append((inputs, head.predict_proba(features)))
    return batches


def _made_up(head: Head, graph: Graph | None) -> Sequence[Any]:
    rng = np.random.default_rng(0)
    if graph is None:
        scaling = head.network.scaling
        noise = rng.normal(size=(5, head.network.dim))
        return list((scaling.mean + scaling.scale * noise).astype(np.float32))
    if graph.tokens:
        return ["a fine film", "and a longer text, about a film that went on and on", "no", "a b c"]
    if graph.extractor.modality == "image":
        return list(rng.integers(0, 256, (5, 40, 48, 3), dtype=np.uint8))
    return [graph.extractor._probe_row] * 3


def _traced(
    module: nn.Module, example: tuple[torch.Tensor, ...], *, tokens: bool
) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    axes: dict[int, Any] = {0: batch}
    if tokens:
        axes[1] = torch.export.Dim.DYNAMIC  # its range is what the model has positions for
    try:
        with _quietly(), torch.no_grad():
            return torch.export.export(
                module, example, dynamic_shapes=(tuple(axes for _ in example),), strict=False
            )
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise MachineError(
            f"torch.export cannot follow this backbone ({type(error).__name__}: {said}): export "
            "the head alone"
        ) from error


def _need_onnx() -> None:
    from importlib.util import find_spec

    for package in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            raise InputError(
                f"--format onnx needs {package}: run pip install 'convex-heads[onnx]', or use "
                "--format torch"
            )


def _write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    names: Sequence[str],
    facts: dict[str, Any],
) -> int:
    try:
        with _quietly():
            found = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(names),
                output_names=list(_OUTPUTS),
                verbose=False,
            )
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise MachineError(
            f"the ONNX exporter cannot follow this model ({type(error).__name__}: {said}): use "
            "--format torch, or export the head alone"
        ) from error
    assert found is not None
    example = () if program.example_inputs is None else program.example_inputs[0]
    _name_axes(found, dict(zip(names, example, strict=True)))
    for name, value in facts.items():
        found.model.metadata_props[name] = json.dumps(value, ensure_ascii=False)
    found.save(str(path), external_data=False)
    return int(found.model.opset_imports[""])


def _name_axes(found: Any, inputs: Mapping[str, torch.Tensor]) -> None:
    """A program keeps no names of dimensions, and the exporter makes up some such as s21."""
    called = {}
    for each in found.model.graph.inputs:
        if each.name not in inputs or not each.shape:
            continue
        for axis, name in enumerate(("batch", "length")[: inputs[each.name].ndim]):
            free = each.shape[axis]
            if not isinstance(free, int) and free.value is not None:
                called[free.value] = name
    if called and hasattr(found, "rename_axes"):  # of torch 2.9
        found.rename_axes(called)


def _onnx_runner(path: Path, names: Sequence[str]) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[torch.Tensor]) -> np.ndarray:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        wanted = {node.name for node in session.get_inputs()}
        answer = session.run(
            ["probabilities"], {name: value for name, value in given.items() if name in wanted}
        )
        return np.asarray(answer[0])

    return run


def _torch_runner(path: Path) -> Any:
    with _quietly():
        module = torch.export.load(path).module()

    def run(inputs: Sequence[torch.Tensor]) -> np.ndarray:
        with torch.no_grad():
            return module(*inputs)[1].numpy()

    return run


@contextmanager
def _quietly() -> Iterator[None]:
    """Exporters warn of their own insides."""
    import logging

    names = ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
