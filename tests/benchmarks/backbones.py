"""Rows per second and bytes per row of the feature store for backbones of their published sizes.

MiniLM is itself; the others have random weights, so that nothing is downloaded: rows per second do
not depend on the weights. Texts are definitions of wordnet6 (for all of them with MiniLM's tokens),
images are JPEG files of 500 x 375. Each backbone fills a store of its own through `extract`, as
`convex-heads extract` does; loading it is not counted. Backbones take turns, medians over repeats.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from shared import Row, parser, show
from throughput import photographs

from extractors import FeatureStore, Rows, load_extractor
from extractors.base import Extractor
from extractors.encode import encode_rows
from extractors.extract import extract

TIMM = ("mobilenetv3_small_100", "mobilenetv2_100", "resnet50", "vit_small_patch16_224")


def text_backbones(home: Path) -> dict[str, str]:
    """MiniLM, and BERT and GPT-2 as their configurations make them by default."""
    import transformers as tf

    minilm: Any = load_extractor("minilm", device="cpu")
    assert minilm.dim
    tokenizer = minilm._model.tokenizer
    made: dict[str, Any] = {"bert-base": tf.BertConfig(), "gpt2": tf.GPT2Config()}
    found = {"all-MiniLM-L6-v2": "minilm"}
    for name, config in made.items():
        tokenizer.save_pretrained(home / name)
        tf.AutoModel.from_config(config).eval().save_pretrained(home / name)
        found[f"{name} (transformers)"] = f"hf:{home / name}"
    return found


def image_backbones(home: Path) -> dict[str, str]:
    """ViT-B/16, DINOv2-S/14 and ConvNeXt-T of transformers, and four of timm."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import transformers as tf
    from tiny_models import save_timm_model

    crop: dict[str, Any] = {"size": {"shortest_edge": 256}}
    crop["crop_size"] = {"height": 224, "width": 224}
    small = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 224}
    made: dict[str, tuple[Any, Any]] = {
        "vit-base-16": (tf.ViTConfig(), tf.ViTImageProcessor()),
        "dinov2-small": (tf.Dinov2Config(**small), tf.BitImageProcessor(**crop)),
        "convnext-tiny": (tf.ConvNextConfig(), tf.ConvNextImageProcessor()),
    }
    found = {}
    for name, (config, processor) in made.items():
        tf.AutoModel.from_config(config).eval().save_pretrained(home / name)
        processor.save_pretrained(home / name)
        found[f"{name} (transformers)"] = f"hf:{home / name}"
    for name in TIMM:
        folder = save_timm_model(home / name, name, side=224)
        found[f"{name} (timm)"] = f"timm:local-dir:{folder}"
    return found


def fill(extractor: Extractor, inputs: list[Any], cache: Path) -> FeatureStore:
    """The rows through `extract` into a store that is new."""
    shutil.rmtree(cache, ignore_errors=True)
    ids = [f"row/{i:05d}" for i in range(len(inputs))]
    return extract(
        {"train": Rows(ids, inputs, np.zeros(len(ids), np.int64))},
        extractor,
        task="rows",
        classes=("a",),
        cache_dir=cache,
        data_fingerprint={"rows": len(ids)},
    ).store


def main() -> None:
    """Measures all of them."""
    made = parser(__doc__)
    made.add_argument("--texts", type=int, default=512, help="rows of each text backbone")
    made.add_argument("--images", type=int, default=96, help="rows of each image backbone")
    made.add_argument("--repeats", type=int, default=3)
    options = made.parse_args()
    from tasks.data.registry import read_wordnet6

    rows: dict[str, list[Any]] = {
        "text": list(read_wordnet6().splits["train"].inputs[: options.texts]),
        "image": photographs(options.images),
    }
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        names = text_backbones(home) | image_backbones(home)
        loaded = {name: load_extractor(given, device="cpu") for name, given in names.items()}
        seconds: dict[str, list[float]] = {name: [] for name in loaded}
        lines: list[Row] = []
        for extractor in loaded.values():
            encode_rows(extractor, rows[extractor.modality][:8], list("abcdefgh"))
        for repeat in range(options.repeats):
            for name, extractor in loaded.items():
                store = fill(extractor, rows[extractor.modality], home / "cache")
                seconds[name].append(store.seconds)
                if repeat + 1 == options.repeats:
                    n = store.n_rows
                    lines.append(
                        {
                            "backbone": name,
                            "rows": extractor.modality,
                            "features": extractor.dim,
                            "rows/s": round(n / median(seconds[name]), 1),
                            "least": round(n / max(seconds[name]), 1),
                            "most": round(n / min(seconds[name]), 1),
                            "bytes/row": round(store.n_bytes / n),
                        }
                    )
    show("rows per second into a feature store, and its size", lines, options)


if __name__ == "__main__":
    main()
