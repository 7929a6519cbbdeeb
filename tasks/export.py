"""A head for other programs: a torch module, a ``torch.export`` program, an ONNX file.

The module takes raw features: standardisation is part of it. What is written is checked before it
appears: the file is read back, run on batches of several sizes, and compared with the head.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from convex_heads.decode import Network, ReluNetwork, TwoLayer
from extractors.errors import InputError, MachineError
from extractors.storage import TEMPORARY_PREFIX, make_folder, plain_disk_errors
from tasks.config import ExportConfig
from tasks.console import Reporter
from tasks.records import ExportRecord

if TYPE_CHECKING:
    from extractors.graph import Graph
    from tasks.artefact import Head

# Standardised features are cut off there, as in convex_heads.scaling.
_FARTHEST = 1e12
TOLERANCE = 1e-4  # of probabilities, exported against the head
_OUTPUTS = ("logits", "probabilities")


class TorchHead(nn.Module):
    r"""A head as a torch module: raw features (n, d) -> logits (n, C).

    For softmax and logistic heads the softmax of the logits are the head's calibrated
    probabilities: the temperature is divided out, and a logistic head has the two columns
    (0, z / T). A squared-loss head gives its scores. The module fits where a classifier layer is
    meant to be; see `set_classifier`.

    The mean is subtracted and the scale divided out by the module itself rather than multiplied
    into its weights: a column with a large mean or a tiny scale would lose its digits.

    Args:
        network: a gated or a ReLU network.
        temperature: scores are divided by it.

    Attributes:
        mean, scale: (d,) buffers.
        gates: (P, d + 1) buffer, and weights (P, d + 1, C) parameter, of a gated head;
        hidden: (m, d + 1) and output (m, C), parameters of a ReLU head.
        offset: (C,) parameter.

    Example:
        >>> from convex_heads.scaling import Scaling
        >>> scaling = Scaling(np.zeros(1, "f"), np.full(1, 2, "f"), np.ones(1, bool))
        >>> network = ReluNetwork(scaling, np.array([[1, 0]], "f"), np.array([[3]], "f"),
        ...                       np.zeros(1, "f"), "squared")
        >>> TorchHead(network)(torch.tensor([[4.0], [-4.0]])).tolist()
        [[6.0], [0.0]]
    """

    mean: torch.Tensor
    scale: torch.Tensor
    gates: torch.Tensor

    def __init__(self, network: TwoLayer, temperature: float = 1.0) -> None:
        super().__init__()
        self.loss = network.loss
        self.temperature = float(temperature)
        self.gated = isinstance(network, Network)
        kept = np.append(network.scaling.keep, True).astype(network.offset.dtype)
        self.register_buffer("mean", _tensor(network.scaling.mean))
        self.register_buffer("scale", _tensor(network.scaling.scale))
        if isinstance(network, Network):
            gates, weights = network.gates * kept, network.weights * kept[:, None]
            if len(gates) == 0:  # exporters do not like layers without a neuron
                gates = np.zeros((1, len(kept)), kept.dtype)
                weights = np.zeros((1, len(kept), len(network.offset)), kept.dtype)
            self.register_buffer("gates", _tensor(gates))
            self.weights = nn.Parameter(_tensor(weights))
        elif isinstance(network, ReluNetwork):
            hidden, output = network.hidden * kept, network.output
            if len(hidden) == 0:
                hidden = np.zeros((1, len(kept)), kept.dtype)
                output = np.zeros((1, len(network.offset)), kept.dtype)
            self.hidden = nn.Parameter(_tensor(hidden))
            self.output = nn.Parameter(_tensor(output))
        else:
            raise TypeError(f"a head is a Network or a ReluNetwork; got {type(network).__name__}")
        self.offset = nn.Parameter(_tensor(network.offset))

    @property
    def in_features(self) -> int:
        """Number of raw features d."""
        return self.mean.shape[0]

    @property
    def out_features(self) -> int:
        """Number of logits."""
        return 2 if self.loss == "logistic" else self.offset.shape[0]

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """What the network computes, before temperature: (n, d) -> (n, C); C = 1 if logistic."""
        x = torch.clamp((x - self.mean) / self.scale, -_FARTHEST, _FARTHEST).to(self.offset.dtype)
        if self.gated:
            P, k, C = self.weights.shape
            on = nn.functional.linear(x, self.gates[:, :-1], self.gates[:, -1]) >= 0
            columns = self.weights.permute(0, 2, 1).reshape(P * C, k)
            inner = nn.functional.linear(x, columns[:, :-1], columns[:, -1]).unflatten(1, (P, C))
            return self.offset + (inner * on.unsqueeze(-1)).sum(dim=1)
        hidden = nn.functional.linear(x, self.hidden[:, :-1], self.hidden[:, -1])
        return self.offset + nn.functional.relu(hidden) @ self.output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw features (n, d) -> logits (n, C >= 2)."""
        z = self.scores(x)
        if self.loss == "squared":
            return z
        z = z / self.temperature
        return torch.cat([torch.zeros_like(z), z], dim=1) if self.loss == "logistic" else z

    def probabilities(self, x: torch.Tensor) -> torch.Tensor:
        """Raw features (n, d) -> class probabilities (n, C >= 2)."""
        return self.probabilities_of(self(x))

    def probabilities_of(self, logits: torch.Tensor) -> torch.Tensor:
        """What `forward` gives -> class probabilities (n, C)."""
        if self.loss == "squared":
            p = torch.clamp(logits, min=0) + torch.finfo(logits.dtype).tiny
            return p / p.sum(dim=1, keepdim=True)
        return torch.softmax(logits, dim=1)

    def extra_repr(self) -> str:
        """What `print` shows."""
        units = len(self.gates) if self.gated else len(self.hidden)
        kind = "gated ReLU" if self.gated else "ReLU"
        return f"{self.in_features} -> {units} {kind} units -> {self.out_features}"


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def to_torch(head: Head) -> TorchHead:
    """The head as a torch module in evaluation mode; see `TorchHead`.

    In float32 it agrees with the head to 1e-5, but for rows that lie within round-off of a gate:
    a gated network jumps there, and which side is right depends on the order of a sum.
    """
    return TorchHead(head.network, head.temperature).eval()


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

    if config.format == "onnx":
        _need_onnx()
    if config.out.is_dir():
        raise InputError(f"--out {config.out} is a folder: name a file, such as head.onnx")
    pipeline = ConvexHeadPipeline.from_pretrained(
        config.artefact, device="cpu", trust_remote_code=config.trust_remote_code
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
    make_folder(config.out.absolute().parent)
    with reporter.stage("export", total=None):
        difference, opset = export_head(
            pipeline.head, config.out, format=config.format, graph=graph, facts=pipeline.describe()
        )
    return ExportRecord(
        artefact=config.artefact,
        out=str(config.out),
        format=config.format,
        with_backbone=config.with_backbone,
        inputs=("features",) if graph is None else graph.names,
        outputs=_OUTPUTS,
        classes=pipeline.classes,
        opset=opset,
        max_difference=difference,
        bytes=config.out.stat().st_size,
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
        out: the file; it appears whole or not at all. Beside that of a text backbone a file
            NAME.tokenizer.json appears, the tokenizer that makes its inputs.
        format: "onnx", or "torch" for a ``torch.export`` program (.pt2).
        graph: the backbone, or None for the head alone.
        facts: JSON-able, kept in the file's metadata.
        rows: raw rows (features without a backbone) to check with; None takes rows made up for it.

    Returns:
        The largest difference of probabilities to those of the head, and the ONNX opset.

    Raises:
        MachineError: the difference is above ``TOLERANCE``, or the exporter failed.
    """
    module = _Answers(to_torch(head), None if graph is None else graph.module).eval()
    module.requires_grad_(False)
    batches = _check_batches(head, graph, rows)
    program = _traced(module, batches[0][0], tokens=graph is not None and graph.tokens)
    temporary = out.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{out.name}")
    opset = None
    try:
        with plain_disk_errors(out.parent):
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
        if graph is not None and graph.tokens:
            _write_tokenizer(graph, out)
        with plain_disk_errors(out.parent):
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
    for name, value in facts.items():
        found.model.metadata_props[name] = json.dumps(value, ensure_ascii=False)
    found.save(str(path), external_data=False)
    return int(found.model.opset_imports[""])


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


def _write_tokenizer(graph: Graph, out: Path) -> None:
    """The tokenizer as one JSON file, with the truncation that the head was fitted with."""
    from extractors.storage import write_atomically

    fast = getattr(graph.tokenizer, "backend_tokenizer", None)
    if fast is None:
        return
    limit = graph.extractor.max_length
    copy = type(fast).from_str(fast.to_str())
    copy.no_truncation() if limit is None else copy.enable_truncation(limit)
    copy.no_padding()
    write_atomically(out.with_suffix(".tokenizer.json"), copy.to_str().encode())


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
