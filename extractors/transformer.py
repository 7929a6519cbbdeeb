"""Text backbones through transformers: encoders such as BERT, decoders such as GPT-2 or Llama.

Padding is always on the right and masked: a decoder's token sees only what is before it, an
encoder's only what the mask shows, so padding changes no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors.backbone import ModelFiles
from extractors.context import settle, settled
from extractors.errors import InputError
from extractors.hf_config import read_config
from extractors.options import Pooling
from extractors.precision import computing
from extractors.quiet import quiet_loading
from extractors.text import (
    TextBackbone,
    TokenRow,
    count_tokens,
    pad_tokens,
    read_tokens,
    token_offsets,
)
from extractors.torchvision_compat import ensure_torchvision_imports
from extractors.unit_length import unit_length, unit_rows

if TYPE_CHECKING:
    import torch

_NO_LIMIT = 10**9  # tokenizers that know no limit say 10**30
_OPTIONS = {"layer", "pooling", "prompt", "normalize", "max_length", "long_text"}
_OPTIONS |= {"autocast", "quantize"}


class TransformerTextExtractor(TextBackbone):
    """A transformers text model as a frozen extractor, in float32.

    By default the last hidden state, averaged over the tokens of a text, without scaling. Code that
    comes with a model runs only where ``options.trust_remote_code`` names that model.

    Example:
        >>> from extractors.names import BackboneName
        >>> from extractors.options import FeatureOptions
        >>> bert = TransformerTextExtractor(
        ...     BackboneName("hf", "google-bert/bert-base-uncased", "0" * 40),
        ...     options=FeatureOptions(layer=(-1, -4), pooling="cls"))
        >>> bert.name
        'hf:google-bert/bert-base-uncased@0000000000000000000000000000000000000000'
    """

    adapter = "transformers-text/1"

    def fingerprint(self) -> dict[str, Any]:
        self.options.allow(_OPTIONS, f"the text model {self.name}")
        return super().fingerprint() | settled(self._config)

    @property
    def _limit(self) -> int | None:
        own = self._own_limit
        wanted = self.options.max_length
        if wanted is not None and own is not None and wanted > own:
            raise InputError(f"--max-length {wanted}: {self.name} reads at most {own} tokens")
        return wanted if wanted is not None else own

    @cached_property
    def _config(self) -> dict[str, Any]:
        return read_config(self._parsed)

    @cached_property
    def _own_limit(self) -> int | None:
        """What both the tokenizer and the position embeddings allow."""
        limits = [int(self._tokenizer.model_max_length), position_limit(self._model) or _NO_LIMIT]
        return min(limits) if min(limits) < _NO_LIMIT else None

    def _count(self, texts: list[str]) -> np.ndarray:
        return count_tokens(self._tokenizer, texts)

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        return token_offsets(self._tokenizer, text, self.name)

    def _read(self, texts: list[str]) -> tuple[list[TokenRow], np.ndarray]:
        whole = [self._prompt + text for text in texts]
        rows, counts = read_tokens(self._tokenizer, whole, self._limit)
        for row in rows:  # a decoder's tokenizer makes no token of an empty text; a model needs one
            if not len(row["input_ids"]):
                row["input_ids"] = np.array([self._filler], np.int32)
        return rows, counts

    def _vectors(self, rows: list[TokenRow]) -> np.ndarray:
        with computing(self._device, self.options.autocast):
            features = self._pooled(self.tensors(rows)).cpu().numpy()
        features = np.ascontiguousarray(features, dtype=np.float32)
        return unit_length(features) if self._normalized else features

    def tensors(self, rows: list[TokenRow]) -> dict[str, torch.Tensor]:
        """What one differentiable pass over rows from ``tokenize`` is given."""
        tokens = pad_tokens(rows, {"input_ids": self._padding})
        return {name: values.to(self._device) for name, values in tokens.items()}

    def features(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """(b, dim) features of one pass, with gradients where they are switched on."""
        found = self._pooled(tensors)
        return unit_rows(found) if self._normalized else found

    def _pooled(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        from extractors.pooling import pool_layers

        ids, mask = tensors["input_ids"], tensors["attention_mask"]
        how: Pooling = self.options.pooling or "mean"
        return pool_layers(self._hidden(ids, mask), mask, how)

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """The layers asked for, each (b, t, d)."""
        from extractors.pooling import select_layers

        layers = self.options.layer or (-1,)
        states = layers != (-1,)
        found = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=states)
        last = found.last_hidden_state
        if not states:
            return [last]
        return select_layers(found.hidden_states, last, layers, self.name)

    @property
    def _transformer(self) -> Any:
        return self._model

    @cached_property
    def _padding(self) -> int:
        """What fills up a row; masked, but RoBERTa counts positions by it."""
        found = self._tokenizer.pad_token_id
        return 0 if found is None else int(found)

    @cached_property
    def _filler(self) -> int:
        known = self._tokenizer
        for token in (known.bos_token_id, known.eos_token_id, known.unk_token_id):
            if token is not None:
                return int(token)
        return self._padding

    @cached_property
    def _model(self) -> Any:
        self.fingerprint()  # refuses what cannot be meant before gigabytes are read
        return self._loaded[1]

    @cached_property
    def _tokenizer(self) -> Any:
        return self._loaded[0]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        tokenizer, model = self._load(self._load_from)
        if getattr(model.config, "is_encoder_decoder", False):
            model = model.get_encoder()
        model.config.use_cache = False
        settle(model)
        model = model.float()
        self._finished(model)
        return tokenizer, model.eval().to(self._device)

    def _load_from(self, files: ModelFiles) -> tuple[Any, Any]:
        ensure_torchvision_imports()
        import torch
        from transformers import AutoModel, AutoTokenizer

        options = {
            "revision": files.commit or "main",
            "local_files_only": files.local_only,
            "trust_remote_code": self._trusted,
        }
        with quiet_loading(bars=not files.local_only):
            tokenizer = AutoTokenizer.from_pretrained(files.path, **options)
            model, report = AutoModel.from_pretrained(
                files.path, dtype=torch.float32, output_loading_info=True, **options
            )
        check_complete(report["missing_keys"], self.name)
        return tokenizer, model


def position_limit(model: Any) -> int | None:
    """Tokens that a transformer has positions for; None where positions are relative.

    RoBERTa and its kin number positions from padding_idx + 1, so that many are not for tokens.
    """
    config = model.config
    positions = getattr(config, "max_position_embeddings", None)
    positions = positions or getattr(config, "n_positions", None)
    if not positions or positions < 0:  # XLNet says -1
        return None
    reserved = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return int(positions) - max(reserved, default=0)


def check_complete(missing: Sequence[str], name: str) -> None:
    """Refuse a model whose files lack weights, which the library would fill with random numbers.

    The pooler of BERT and its kin is often absent and never used here.

    Raises:
        InputError: other weights are missing.
    """
    lacking = sorted(key for key in missing if "pooler" not in key.split("."))
    if lacking:
        raise InputError(
            f"the files of {name} lack {len(lacking)} weights of the model that its config.json "
            f"describes (the first: {lacking[0]}): it is another model, or a part of one"
        )
