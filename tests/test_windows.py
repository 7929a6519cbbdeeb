"""Long texts in windows, with tokenizers that read a piece otherwise than the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import save_text_model

from extractors import InputError, load_extractor
from extractors.options import FeatureOptions

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture
def metaspace(tmp_path: Path) -> Path:
    """A tiny RoBERTa whose tokenizer puts a mark before whatever it is given, as SentencePiece."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    folder = save_text_model("roberta", tmp_path / "metaspace")
    vocabulary = {t: i for i, t in enumerate([*SPECIAL, "▁", *"abcdefghijklmnopqrstuvwxyz"])}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace()
    inner.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        cls_token="<s>", sep_token="</s>", unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip
    return folder


def load(folder: Path, **options: Any) -> Any:
    options = {"long_text": "windows"} | options
    return load_extractor(f"hf:{folder}", device="cpu", options=FeatureOptions(**options))


@pytest.mark.parametrize("prompt", [None, "an "])
@pytest.mark.parametrize("limit", [16, 10])
def test_no_letter_of_a_text_without_spaces_is_lost(
    metaspace: Path, limit: int, prompt: str | None
) -> None:
    extractor = load(metaspace, max_length=limit, prompt=prompt)
    text = ("abcdefghijklmnopqrstuvwxyz" * 4)[:80]
    pieces = extractor._windows(text)
    assert "".join(pieces) == text and all(pieces)
    assert (extractor.token_counts(pieces) <= limit).all()
    # Every letter counts, wherever it stands.
    whole = extractor.encode([text])
    for place in range(0, 80, 7):
        other = text[:place] + ("a" if text[place] != "a" else "b") + text[place + 1 :]
        assert np.abs(extractor.encode([other]) - whole).max() > 1e-6, place


def test_a_letter_that_is_longer_than_a_window_is_refused(tmp_path: Path) -> None:
    folder = save_text_model("roberta", tmp_path / "bytes")  # three tokens for such a letter
    assert load(folder, max_length=5).encode(["漢字漢字"]).shape == (1, 32)
    with pytest.raises(InputError, match=r"'漢' alone has 5 tokens"):
        load(folder, max_length=4).encode(["漢字漢字"])


def test_only_windows_are_named_in_the_fingerprint(metaspace: Path) -> None:
    assert load(metaspace).fingerprint()["windows"] == 2
    assert "windows" not in load(metaspace, long_text="truncate").fingerprint()
