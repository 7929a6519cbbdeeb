"""ConvexHeadPipeline: raw texts or images in, labels and probabilities out."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from extractors.base import Extractor, Modality
from extractors.encode import Chunk, OnBadRow, encode_chunks, encode_rows
from extractors.errors import BadRow, InputError
from extractors.names import parse_name
from tasks.answers import answers_of, check_top_k, many, streamed
from tasks.artefact import Artefact, Head, read_artefact, write_artefact
from tasks.fetch import find_artefact, folder_of, hide_places, image_input, push_folder
from tasks.fitted_backbone import fitted_backbone

_BATCH_ROWS = 256
_PAGES = ("README.md", "report.html")


@dataclass(frozen=True)
class Predicted:
    """The answers to a chunk of n rows.

    Attributes:
        ids: n names.
        probabilities: (n, C) float32; NaN in the rows that were skipped.
        skipped: id -> reason.
    """

    ids: Sequence[str]
    probabilities: np.ndarray
    skipped: dict[str, str]


class ConvexHeadPipeline:
    """A frozen backbone and a convex head, ready to label raw rows.

    The backbone is loaded when the first row is labelled, and refused if its features are not
    those the head was trained on (other weights, another pooling, another length).

    Args:
        artefact: what was read from an artefact's folder.
        device: a torch device for the backbone; None takes a GPU when there is one.
        trust_remote_code: the backbone's own id, if its Python code may run; nothing in an artefact
            can ask for that.
        backbone: its name where it is now, if it was in a folder that has moved.
        extractor: the backbone itself, where it has no name that can be loaded
            (`extractors.module.ModuleExtractor`).

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from tasks.config import FitConfig
        >>> from tasks.console import QuietReporter
        >>> from tasks.fit import run_fit
        >>> folder = Path(tempfile.mkdtemp())
        >>> fitted = run_fit(FitConfig(data="digits", backbone="toy:image", out=folder / "head",
        ...                            cache_dir=folder, n_gates=4, beta=0.1),
        ...                  reporter=QuietReporter())
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
        backbone: str | None = None,
        extractor: Extractor | None = None,
    ) -> None:
        self._artefact = artefact
        self._backbone = None if backbone is None else str(parse_name(backbone))
        self._device = device
        self._trust_remote_code = trust_remote_code
        self._given_extractor = extractor
        self._folder: Path | None = None

    def __repr__(self) -> str:
        return f"ConvexHeadPipeline({self.modality}, {self.backbone}, {len(self.classes)} classes)"

    def __getstate__(self) -> dict[str, Any]:
        """Pickled or copied: without the backbone, unless it was given; it is loaded again."""
        return {name: value for name, value in vars(self).items() if name != "_extractor"}

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        device: str | None = None,
        trust_remote_code: str | None = None,
        backbone: str | None = None,
        extractor: Extractor | None = None,
    ) -> Self:
        """Opens an artefact. Nothing in it is executed.

        Args:
            path: a folder, or ``owner/name`` of a repository on the Hugging Face Hub.
            revision: branch, tag or commit there.
            local_files_only: take what was downloaded before, ask no network.
            token: for private repositories; None is the one that was logged in with. It is passed
                on and kept nowhere.
            device: as of the class; so are the others.
            trust_remote_code: as of the class.
            backbone: as of the class.
            extractor: as of the class.

        Raises:
            InputError: no artefact, or one that is altered, incomplete or of another version.
            MachineError: the Hub cannot be reached.
        """
        folder = find_artefact(path, revision, local_files_only, token)
        made = cls(
            read_artefact(folder),
            device=device,
            trust_remote_code=trust_remote_code,
            backbone=backbone,
            extractor=extractor,
        )
        made._folder = folder
        return made

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Writes the artefact to another folder, whole or not at all, its card and report too.

        Raises:
            InputError: the folder holds something else.
            MachineError: the disk refuses.
        """
        config = self._artefact.config
        written = {"schema_version", "kind", "classes", "activation", "loss", "temperature"}
        named = {"modality", "backbone", "backbone_fingerprint", "weights_sha256"}

        def copy_pages(folder: Path) -> None:
            for name in _PAGES:
                if self._folder is not None and (self._folder / name).is_file():
                    shutil.copyfile(self._folder / name, folder / name)

        write_artefact(
            Path(path),
            self.head,
            modality=self.modality,
            backbone=self.backbone,
            backbone_fingerprint=config["backbone_fingerprint"],
            facts={key: config[key] for key in config.keys() - written - named},
            write_more=copy_pages,
            changes=self.changes,
        )

    def push_to_hub(
        self,
        repository: str,
        *,
        revision: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Add a convex head",
    ) -> str:
        """Uploads the artefact to the Hugging Face Hub, in one commit, and returns its address.

        Of the folders of this machine that the record names (stores, commands, the backbone's) only
        the last part goes along. A backbone that is a folder does not; a warning says so, and
        who loads the head names it with ``backbone=``.

        Args:
            repository: ``owner/name``; made where it is missing.
            revision: a branch that is there; None is the default one.
            private: of a new repository.
            token: with the right to write; None is the one that was logged in with. It is passed
                on and kept nowhere.
            commit_message: of the commit.

        Raises:
            InputError: no such repository or branch, or no right to write there.
            MachineError: the Hub cannot be reached.
        """
        import tempfile

        if local := folder_of(self.backbone):
            warnings.warn(
                f"the backbone of this head is the folder {local}, which is not uploaded: whoever "
                f"loads the head needs a copy of it, and passes backbone='SOURCE:FOLDER'",
                stacklevel=2,
            )
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "artefact")
            hide_places(Path(folder) / "artefact")
            return push_folder(
                Path(folder) / "artefact", repository, revision, private, token, commit_message
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
        return self._backbone or self._artefact.config["backbone"]

    @property
    def certificate(self) -> dict[str, Any]:
        """Primal, dual, relative gap and the rest, as they were proven when the head was fitted."""
        return dict(self._artefact.config.get("certificate", {}))

    @property
    def changes(self) -> Mapping[str, np.ndarray]:
        """Weights of the backbone that were fine-tuned, by their names in its state."""
        return self._artefact.changes

    @property
    def extractor(self) -> Extractor:
        """The backbone, checked to be the one that the head was fitted on."""
        return self._extractor

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on; JSON-able."""
        config = self._artefact.config
        names = ("weights_sha256", "temperature", "classes", "backbone_fingerprint")
        return {name: config[name] for name in names}

    @property
    def facts(self) -> dict[str, Any]:
        """The whole of ``config.json``: the record of the fit, where features lie, and the rest."""
        return dict(self._artefact.config)

    def describe(self) -> dict[str, Any]:
        """What other programs should know of the head: names, backbone, certificate; JSON-able."""
        config = self._artefact.config
        return {
            "library": "convex-heads",
            "classes": list(self.classes),
            "modality": self.modality,
            "backbone": self.backbone,
            "backbone_options": config.get("backbone_options", {}),
            "activation": config["activation"],
            "loss": config["loss"],
            "temperature": self.head.temperature,
            "certificate": self.certificate,
        }

    def __call__(
        self,
        items: Any,
        *,
        top_k: int | None = None,
        return_features: bool = False,
        return_certificate: bool = False,
        allow_urls: bool = False,
        batch_rows: int = _BATCH_ROWS,
        on_bad_row: OnBadRow = "fail",
    ) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """Labels one item, a list of them, or a stream.

        Args:
            items: a text, an image (path, encoded bytes, PIL image, uint8 array) or a vector of
                features; or a list of such, or whatever has an order and a length (an array, a
                column of a table); or a generator or iterator of such, of any length.
            top_k: so many of the most probable classes too; None leaves them out.
            return_features: the backbone's vector too.
            return_certificate: a radius too within which no change of the features changes the
                label, in standardised-feature units; see `convex_heads.robustness_radius`.
            allow_urls: whether a text that begins with http:// or https:// names an image that is
                to be fetched; otherwise it is refused.
            batch_rows: of a stream: so many items are taken before the first is answered.
            on_bad_row: "fail" raises InputError at an item that cannot be encoded, "skip" answers
                ``{"label": None, "score": None, "skipped": reason}`` and goes on.

        Returns:
            ``{"label": name, "score": probability}`` and what else was asked for: ``"top_k"``, a
            list of such, ``"features"`` (d,), ``"robustness_radius"``. A list of such for a list,
            an iterator for a generator.

        Raises:
            InputError: an item cannot be encoded, ``top_k`` is below 1, or neither is of a type
                that can be used.
        """
        check_top_k(top_k)

        def answers(rows: Sequence[Any], before: int = 0) -> list[dict[str, Any]]:
            if not len(rows):
                return []
            ids = [f"item {before + i}" for i in range(1, len(rows) + 1)]
            inputs = self._inputs(rows, on_bad_row, allow_urls)
            encoded = encode_rows(self._extractor, inputs, ids, on_bad_row=on_bad_row)
            return answers_of(
                self.head,
                encoded,
                ids,
                top_k=top_k,
                features=return_features,
                certificate=return_certificate,
            )

        if isinstance(items, Iterator):
            return streamed(items, answers, max(1, batch_rows))
        rows = many(items, self.modality)
        return answers([items])[0] if rows is None else answers(rows)

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
        rows = many(items, self.modality)
        if rows is None:
            raise InputError("predict_proba takes a list, and this is one item: put it in a list")
        ids = [f"item {i}" for i in range(1, len(rows) + 1)] if ids is None else ids
        if not len(rows):
            return np.full((0, len(self.classes)), np.nan, np.float32)
        return next(self.predict_stream([(ids, rows)], on_bad_row=on_bad_row)).probabilities

    def predict_stream(
        self,
        chunks: Iterable[tuple[Sequence[str], Sequence[Any]]],
        *,
        on_bad_row: OnBadRow = "fail",
    ) -> Iterator[Predicted]:
        """Labels one chunk of rows after the other, at the extractor's full speed.

        Args:
            chunks: (ids, items) each; taken one ahead, whose texts are read while the one before
                is encoded. A few hundred rows make a good chunk.
            on_bad_row: as in `predict_proba`.
        """

        def made() -> Iterator[Chunk]:
            for ids, items in chunks:
                yield Chunk("", ids, self._inputs(items, on_bad_row), np.zeros(len(ids), np.int64))

        for chunk, rows in encode_chunks(self._extractor, made(), on_bad_row=on_bad_row):
            out = np.full((len(chunk.ids), len(self.classes)), np.nan, np.float32)
            if len(rows.kept):
                out[rows.kept] = self.head.predict_proba(rows.features)
            yield Predicted(chunk.ids, out, rows.skipped)

    def _inputs(
        self, items: Sequence[Any], on_bad_row: OnBadRow, allow_urls: bool = False
    ) -> Sequence[Any]:
        if self.modality != "image":
            return items

        def found(item: str) -> Path | bytes | BadRow:
            try:
                return image_input(item, allow_urls)
            except InputError as error:
                if on_bad_row == "fail":
                    raise
                return BadRow(str(error))

        return [found(item) if isinstance(item, str) else item for item in items]

    @cached_property
    def _extractor(self) -> Extractor:
        return fitted_backbone(
            self.backbone,
            self._artefact.config,
            self.changes,
            device=self._device,
            trust_remote_code=self._trust_remote_code,
            given=self._given_extractor,
        )
