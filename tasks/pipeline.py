"""ConvexHeadPipeline: raw texts or images in, labels and probabilities out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from extractors.base import Extractor, Modality
from extractors.changes import with_changes
from extractors.encode import OnBadRow, encode_rows
from extractors.errors import InputError
from extractors.options import FeatureOptions
from tasks.artefact import Artefact, Head, read_artefact, write_artefact


class ConvexHeadPipeline:
    """A frozen backbone and a convex head, ready to label raw rows.

    The backbone is loaded when the first row is labelled, and refused if its features are not
    those the head was trained on (other weights, another pooling, another length).

    Args:
        artefact: what was read from an artefact's folder.
        device: a torch device for the backbone; None takes a GPU when there is one.
        trust_remote_code: the backbone's own id, if its Python code may run; nothing in an artefact
            can ask for that.
        extractor: the backbone itself, where it has no name that can be loaded
            (`extractors.module.ModuleExtractor`).

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from tasks.config import FitConfig
        >>> from tasks.fit import run_fit
        >>> folder = Path(tempfile.mkdtemp())
        >>> fitted = run_fit(FitConfig(data="digits", backbone="toy:image", out=folder / "head",
        ...                            cache_dir=folder, n_gates=4, beta=0.1))
        >>> clf = ConvexHeadPipeline.from_pretrained(folder / "head")
        >>> sorted(clf(np.zeros((8, 8), np.uint8)))
        ['label', 'score']
    """

    def __init__(
        self,
        artefact: Artefact,
        *,
        device: str | None = None,
        trust_remote_code: str | None = None,
        extractor: Extractor | None = None,
    ) -> None:
        self._artefact = artefact
        self._device = device
        self._trust_remote_code = trust_remote_code
        self._given_extractor = extractor

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | None = None,
        trust_remote_code: str | None = None,
        extractor: Extractor | None = None,
    ) -> Self:
        """Opens the artefact in a folder. Nothing in it is executed; arguments as of the class.

        Raises:
            InputError: no artefact, or one that is altered, incomplete or of another version.
        """
        artefact = read_artefact(Path(path))
        return cls(
            artefact, device=device, trust_remote_code=trust_remote_code, extractor=extractor
        )

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Writes the head's settings and weights as an artefact folder, whole or not at all.

        Raises:
            InputError: the folder holds something else.
            MachineError: the disk refuses.
        """
        config = self._artefact.config
        written = {"schema_version", "kind", "classes", "loss", "temperature", "weights_sha256"}
        named = {"modality", "backbone", "backbone_fingerprint"}
        write_artefact(
            Path(path),
            self.head,
            modality=self.modality,
            backbone=self.backbone,
            backbone_fingerprint=config["backbone_fingerprint"],
            facts={key: config[key] for key in config.keys() - written - named},
            changes=self._artefact.changes,
        )

    @property
    def head(self) -> Head:
        """The head: features -> probabilities."""
        return self._artefact.head

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities."""
        return self.head.classes

    @property
    def modality(self) -> Modality:
        """``text``, ``image`` or ``features``."""
        return cast(Modality, self._artefact.config["modality"])

    @property
    def backbone(self) -> str:
        """Its name, ``source:id[@revision]``."""
        return self._artefact.config["backbone"]

    @property
    def certificate(self) -> dict[str, Any]:
        """Primal, dual, relative gap and the rest, as they were proven when the head was fitted."""
        return dict(self._artefact.config.get("certificate", {}))

    def __call__(self, items: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """Labels one item, or a list of them.

        Args:
            items: a text, an image (path, encoded bytes, PIL image, uint8 array) or a vector of
            features; or a list of such (of vectors also an array (n, d)).

        Returns:
            ``{"label": name, "score": probability}``; a list of such for a list.

        Raises:
            InputError: an item cannot be encoded.
        """
        single = not isinstance(items, list | tuple)
        if self.modality == "features":
            items = np.asarray(items)
            single = items.ndim == 1
        answers = [
            {"label": self.classes[row.argmax()], "score": float(row.max())}
            for row in self.predict_proba([items] if single else items)
        ]
        return answers[0] if single else answers

    def predict_proba(
        self,
        items: Sequence[Any],
        *,
        ids: Sequence[str] | None = None,
        on_bad_row: OnBadRow = "fail",
    ) -> np.ndarray:
        """Probabilities (n, C) of n items; NaN in rows that were skipped.

        Args:
            items: texts or images, see ``__call__``.
            ids: names for messages; None numbers them from 1.
            on_bad_row: "fail" raises InputError at an item that cannot be encoded, "skip" leaves
                NaN in its row.
        """
        ids = [f"item {i}" for i in range(1, len(items) + 1)] if ids is None else ids
        out = np.full((len(items), len(self.classes)), np.nan, np.float32)
        if len(items):
            encoded = encode_rows(self._extractor, self._inputs(items), ids, on_bad_row=on_bad_row)
            if len(encoded.kept):
                out[encoded.kept] = self.head.predict_proba(encoded.features)
        return out

    def _inputs(self, items: Sequence[Any]) -> Sequence[Any]:
        if self.modality != "image":
            return items
        return [Path(item) if isinstance(item, str) else item for item in items]

    @cached_property
    def _extractor(self) -> Extractor:
        from extractors import load_extractor

        options = FeatureOptions.from_chosen(
            self._artefact.config.get("backbone_options", {}),
            trust_remote_code=self._trust_remote_code,
        )
        extractor = self._given_extractor or load_extractor(
            self.backbone, device=self._device, options=options
        )
        if self._artefact.changes:
            extractor = with_changes(extractor, self._artefact.changes)
        fitted = self._artefact.config["backbone_fingerprint"]
        found = extractor.fingerprint()
        if found != fitted:
            differs = sorted(
                key for key in fitted.keys() | found.keys() if fitted.get(key) != found.get(key)
            )
            raise InputError(
                f"the backbone {self.backbone} is not the one this head was fitted on "
                f"({', '.join(differs)} differ): restore that version, or fit again"
            )
        return extractor
