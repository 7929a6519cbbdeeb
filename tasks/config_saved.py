"""Options of the verbs that take what is there already: a saved head, a store, the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from extractors.errors import InputError
from tasks.config_base import CommonConfig, OnBadRow, above_zero, at_least, check_gap

OutputFormat = Literal["table", "json", "jsonl", "csv", "parquet"]
ExportFormat = Literal["onnx", "torch"]
CacheAction = Literal["ls", "verify", "compact", "rm"]


@dataclass(frozen=True, kw_only=True)
class TasksConfig(CommonConfig):
    """Options of `tasks` and `doctor`. data_root: None means CONVEX_HEADS_DATA."""

    data_root: Path | None = None


@dataclass(frozen=True, kw_only=True)
class InfoConfig(CommonConfig):
    """Options of `info`. path: a store or an artefact."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class CacheConfig(CommonConfig):
    """Options of `cache`. stores: names or folders; none means all for `ls` and `verify`."""

    action: CacheAction = "ls"
    stores: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action in ("compact", "rm") and not self.stores:
            raise InputError(
                f"say which stores to {self.action}: `convex-heads cache ls` lists them"
            )


@dataclass(frozen=True, kw_only=True)
class PredictConfig(CommonConfig):
    """Options of `predict`: a saved head, and texts or a file or folder of new rows.

    backbone: its name where it is now, if it was in a folder that has moved; so of the other verbs.
    id_column: of a table, what rows are called in the output; None numbers them.
    output: a file; None is stdout. format: None follows the suffix of output, otherwise a table.
    """

    artefact: str
    text: tuple[str, ...] = ()
    input: Path | None = None
    id_column: str | None = None
    output: Path | None = None
    format: OutputFormat | None = None
    text_column: str | None = None
    image_column: str | None = None
    features_column: str | None = None
    on_bad_row: OnBadRow = "fail"
    trust_remote_code: str | None = None
    backbone: str | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledRowsConfig(CommonConfig):
    """A saved head, and labelled rows for it; the options of the rows as in ExtractConfig."""

    artefact: str
    data: str
    data_root: Path | None = None
    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    features_column: str | None = None
    classes: tuple[str, ...] = ()
    on_bad_row: OnBadRow = "fail"
    trust_remote_code: str | None = None
    backbone: str | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(LabelledRowsConfig):
    """Options of `evaluate`: a saved head, and labelled rows.

    split: None takes test where there is one, otherwise all rows. by: a column of the table;
    metrics are given for each of its values.
    """

    split: Literal["train", "validation", "test"] | None = None
    by: str | None = None


@dataclass(frozen=True, kw_only=True)
class RefitConfig(LabelledRowsConfig):
    """Options of `refit`: a saved head, labelled rows to add, and where the new head goes.

    Backbone, standardisation, gates and penalty are those of the head. The others are as in
    FitConfig.
    """

    out: Path
    tolerance: float | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gap(self.tolerance)
        above_zero("--max-seconds", self.max_seconds)


@dataclass(frozen=True, kw_only=True)
class ServeConfig(CommonConfig):
    """Options of `serve`: which head, where, and how much at once.

    host: loopback unless another is named. port: 0 takes a free one. max_batch: rows that are
    encoded together. max_queue: rows that may wait; beyond, requests are answered with 503.
    max_rows and max_body_mb: of one request; max_megapixels: of one image. timeout_seconds: until a
    request is answered with 504. shutdown_seconds: that requests are given to end.
    """

    artefact: str
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 64
    max_queue: int = 256
    max_rows: int = 256
    max_body_mb: float = 16.0
    max_megapixels: float = 64.0
    timeout_seconds: float = 60.0
    shutdown_seconds: int = 30
    trust_remote_code: str | None = None
    backbone: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--port", self.port, 0)
        if self.port > 65535:
            raise InputError(f"--port {self.port}: must be at most 65535")
        for name in ("max_batch", "max_queue", "max_rows", "shutdown_seconds"):
            at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        above_zero("--max-body-mb", self.max_body_mb)
        above_zero("--max-megapixels", self.max_megapixels)
        above_zero("--timeout-seconds", self.timeout_seconds)


_SUFFIXES: dict[str, ExportFormat] = {".onnx": "onnx", ".pt2": "torch"}


@dataclass(frozen=True, kw_only=True)
class ExportConfig(CommonConfig):
    """Options of `export`: which head, as what, and whether its backbone goes before it.

    out: the file to write. format: "onnx", or "torch" for a `torch.export` program; None is
    what the suffix of `out` says, .onnx or .pt2, and "onnx" for others.
    """

    artefact: str
    out: Path
    format: ExportFormat | None = None
    with_backbone: bool = False
    trust_remote_code: str | None = None
    backbone: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        told = _SUFFIXES.get(self.out.suffix.lower())
        if None not in (self.format, told) and self.format != told:
            raise InputError(
                f"--out {self.out} is the name of a file of --format {told}, and --format "
                f"{self.format} was asked for: change one of the two"
            )

    @property
    def kind(self) -> ExportFormat:
        """The format: what was asked for, or what the name of the file says."""
        return self.format or _SUFFIXES.get(self.out.suffix.lower(), "onnx")
