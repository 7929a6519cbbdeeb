"""What a backbone adapter is, and what it is fed.

An adapter turns raw rows into fixed-size float32 vectors and can say, without loading the
backbone, everything that those numbers depend on (its *fingerprint*). Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from extractors.errors import InputError

_LARGEST_LABEL = np.iinfo(np.int64).max

Modality = Literal["text", "image", "features"]


@dataclass(frozen=True)
class Rows:
    """The raw rows of one split.

    Attributes:
        ids: n texts, unique in the whole data set and stable between runs.
        inputs: n raw inputs. Text: ``str``. Images: ``bytes`` (an encoded file), ``pathlib.Path``,
            ``PIL.Image.Image``, or a uint8 array (H, W) or (H, W, 3).
        labels: (n,) class indices, converted to int64.

    Raises:
        InputError: the three do not have the same length, an id is no text, or the labels are not
            (n,) integers.

    Example:
        >>> import numpy as np
        >>> len(Rows(ids=["a", "b"], inputs=["good", "bad"], labels=np.array([1, 0])))
        2
    """

    ids: Sequence[str]
    inputs: Sequence[Any]
    labels: np.ndarray

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
            raise InputError(
                f"labels must be a vector of integers, got {labels.dtype} of shape {labels.shape}"
            )
        if not len(self.ids) == len(self.inputs) == len(labels):
            raise InputError(
                f"a row needs an id, an input and a label: got {len(self.ids)} ids, "
                f"{len(self.inputs)} inputs and {len(labels)} labels"
            )
        check_ids(self.ids)
        if labels.dtype == np.uint64 and labels.size and labels.max() > _LARGEST_LABEL:
            raise InputError(f"labels must be at most {_LARGEST_LABEL}, got {labels.max()}")
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.ids)


def check_ids(ids: Sequence[str]) -> None:
    """Refuse ids that no store can hold.

    Raises:
        InputError: one is no text, or text that UTF-8 has no bytes for.
    """
    for name in ids:
        if not isinstance(name, str):
            raise InputError(f"ids must be texts, got {type(name).__name__} ({name!r:.40})")
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        bad = next(name for name in ids if any("\ud800" <= letter <= "\udfff" for letter in name))
        raise InputError(f"the id {bad!a:.80} is no valid Unicode: give the row another") from None


@runtime_checkable
class Approximate(Protocol):
    """An extractor that may compute in less than float32; the error is then measured and kept."""

    def exact(self) -> Extractor | None:
        """The same backbone in float32; None where this one computes in float32 already."""
        ...


@runtime_checkable
class Parallel(Protocol):
    """An extractor whose forward passes may run beside each other, in threads."""

    def side_by_side(self) -> AbstractContextManager[int]:
        """While it is open, that many threads may call ``encode`` at the same time."""
        ...


@runtime_checkable
class Tokenizing(Protocol):
    """An extractor of texts that reads each text once, ahead of the forward pass."""

    @property
    def batch_tokens(self) -> int:
        """Tokens in one forward pass, padding included, that use this device well."""
        ...

    def tokenize(self, prepared: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
        """Rows as ``encode`` takes them too, and their (b,) int32 token counts untruncated."""
        ...


@runtime_checkable
class Extractor(Protocol):
    """A frozen backbone behind one narrow interface.

    Creating one is cheap; the backbone is loaded by the first ``dim``, ``max_length``,
    ``token_counts`` or ``encode``. Results do not depend on which other rows share a batch, up to
    float32 rounding.
    """

    @property
    def name(self) -> str:
        """Canonical ``source:id[@revision]``; ``load_extractor(name)`` gives the same backbone."""
        ...

    @property
    def modality(self) -> Modality: ...

    @property
    def batch_size(self) -> int:
        """Rows per forward pass that use this device well."""
        ...

    @property
    def max_length(self) -> int | None:
        """Tokens after which a text is cut off; None where nothing is ever cut off."""
        ...

    @property
    def dim(self) -> int:
        """Width of a feature vector, read from an output rather than from a configuration."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes the numbers, as JSON-able values; loads no weights, no torch."""
        ...

    def prepare(self, item: Any) -> Any:
        """Check and decode one raw row.

        Raises:
            BadRow: the row cannot be encoded; the message says why.
        """
        ...

    def token_counts(self, prepared: Sequence[Any]) -> np.ndarray | None:
        """(b,) int32 token counts before truncation, or None where there are no tokens."""
        ...

    def encode(self, prepared: Sequence[Any]) -> np.ndarray:
        """(b, dim) float32 features of b prepared rows: one forward pass."""
        ...
