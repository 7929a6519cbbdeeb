"""Small random backbones, saved as their libraries save them: real architectures, no download."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CORPUS = [
    "a fine film that nobody has eyes for, and yet fine",
    "the dull film went on and on; nobody would want to miss the end of it",
    "ants and bees live in houses of their own making",
    "what a wonderful, wonderful day it was for the whole family",
]
TEXT_KINDS = ("bert", "roberta", "gpt2", "llama")
IMAGE_KINDS = ("vit", "dinov2", "clip", "siglip", "convnext")
# timm architectures with the arguments that make them small.
TIMM: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "mobilenetv3_small_050": {},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 3, "embed_dim": 48},
}
# Positions that each text model is made with; RoBERTa's first two are reserved.
POSITIONS = 40


def _transformers() -> Any:
    from extractors.torchvision_compat import ensure_torchvision_imports

    ensure_torchvision_imports()
    import torch
    import transformers

    torch.manual_seed(0)
    return transformers


def save_backbone(kind: str, folder: Path) -> str:
    """Any of these models, or a BERT as sentence-transformers saves it, by its backbone's name."""
    if kind in TIMM:
        return f"timm:local-dir:{save_timm_model(folder / kind, kind, **TIMM[kind])}"
    if kind in IMAGE_KINDS:
        return f"hf:{save_image_model(kind, folder / kind)}"
    if kind != "sentence":
        return f"hf:{save_text_model(kind, folder / kind)}"
    inner = save_text_model("bert", folder / "inner")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    modules = [Transformer(str(inner)), Pooling(32, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / kind))
    return f"st:{folder / kind}"


def save_half_sentence_model(folder: Path) -> Path:
    """A BERT of width 16 that reads 24 tokens, in float16, as sentence-transformers saves it."""
    tf = _transformers()
    import torch

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef,", "##n", "##e", "##i"]
    words += ["fine", "dull", "film", "the", "that", "nobody", "has", "eyes", "for", "and", "yet"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tf.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    # Half precision on disk: the extractor must not compute in it.
    tf.BertModel(config).to(torch.float16).save_pretrained(folder)
    kinds = ["Transformer", "Pooling", "Normalize"]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": f"{i}_{kind}" if i else "",
                    "type": f"sentence_transformers.models.{kind}",
                }
                for i, kind in enumerate(kinds)
            ]
        )
    )
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 24, "do_lower_case": False})
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    )
    return folder


def save_text_model(kind: str, folder: Path) -> Path:
    """A random BERT, RoBERTa, GPT-2 or Llama of width 32 and four layers with its tokenizer."""
    tf = _transformers()
    if kind == "bert":
        tokenizer = _word_pieces(tf, folder)
        model = tf.BertModel(
            tf.BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=48,
                max_position_embeddings=POSITIONS,
                initializer_range=0.3,
            )
        )
    elif kind == "roberta":
        tokenizer = _byte_pairs(tf, cls=True)
        model = tf.RobertaModel(
            tf.RobertaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=48,
                max_position_embeddings=POSITIONS,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                initializer_range=0.3,
            )
        )
    elif kind == "gpt2":
        tokenizer = _byte_pairs(tf, cls=False)
        model = tf.GPT2Model(
            tf.GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=32,
                n_layer=4,
                n_head=2,
                n_positions=POSITIONS,
                bos_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                initializer_range=0.3,
            )
        )
    elif kind == "llama":
        tokenizer = _byte_pairs(tf, cls=False, bos=True)
        model = tf.LlamaModel(
            tf.LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=48,
                max_position_embeddings=POSITIONS,
                initializer_range=0.3,
            )
        )
    else:
        raise ValueError(kind)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder


def save_image_model(kind: str, folder: Path, *, tower_only: bool = False) -> Path:
    """A random vision model that reads 32 x 32 pixels, with its image processor."""
    tf = _transformers()
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 32,
        "patch_size": 8,
    }
    language = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1}
    language |= {"num_attention_heads": 2, "intermediate_size": 16}
    language |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    sizes: dict[str, Any] = {"size": {"height": 32, "width": 32}}
    if kind == "vit":
        model = tf.ViTModel(tf.ViTConfig(**tower, initializer_range=0.3))
        processor = tf.ViTImageProcessor(**sizes)
    elif kind == "dinov2":
        del tower["intermediate_size"]
        model = tf.Dinov2Model(tf.Dinov2Config(**tower, mlp_ratio=2, initializer_range=0.3))
        processor = tf.BitImageProcessor(
            size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
        )
    elif kind == "clip":
        config = tf.CLIPConfig(text_config=language, vision_config=tower, projection_dim=24)
        model = tf.CLIPModel(config)
        if tower_only:
            model = tf.CLIPVisionModel(config.vision_config)
        processor = tf.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    elif kind == "siglip":
        model = tf.SiglipModel(tf.SiglipConfig(text_config=language, vision_config=tower))
        processor = tf.SiglipImageProcessor(**sizes)
    elif kind == "convnext":
        model = tf.ConvNextModel(
            tf.ConvNextConfig(
                image_size=32,
                depths=[1, 1, 2, 1],
                hidden_sizes=[8, 16, 24, 32],
                patch_size=2,
                layer_scale_init_value=0.5,
                initializer_range=0.3,
            )
        )
        processor = tf.ConvNextImageProcessor(size={"shortest_edge": 32})
    else:
        raise ValueError(kind)
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_timm_model(folder: Path, architecture: str, *, side: int = 64, **arguments: Any) -> Path:
    """A random timm model in its local-dir form, with the preprocessing of its default weights."""
    tf = _transformers()
    del tf
    import timm
    from safetensors.torch import save_file

    model = timm.create_model(architecture, num_classes=5, **arguments)
    folder.mkdir(parents=True)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors"
    )
    found = model.pretrained_cfg
    side = arguments.get("img_size", side)
    config = {
        "architecture": architecture,
        "num_classes": 5,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "mean": list(found["mean"]),
            "std": list(found["std"]),
            "num_classes": 5,
            "first_conv": found["first_conv"],
            "classifier": found["classifier"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _word_pieces(tf: Any, folder: Path) -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_letters(), *_words(CORPUS)]
    words += [f"##{letter}" for letter in _letters()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n")
    return tf.BertTokenizerFast(str(folder / "vocab.txt"))


def _byte_pairs(tf: Any, *, cls: bool, bos: bool = False) -> Any:
    from tokenizers import ByteLevelBPETokenizer, processors

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if cls or bos else ["<|endoftext|>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CORPUS, vocab_size=400, special_tokens=special, show_progress=False)
    inner = trained._tokenizer
    if cls:
        inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        named |= {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    elif bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
        named = {"bos_token": "<s>", "eos_token": "</s>"}
    else:
        named = {"eos_token": "<|endoftext|>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def _letters() -> str:
    return "abcdefghijklmnopqrstuvwxyz,;."


def _words(texts: Iterable[str]) -> list[str]:
    plain = " ".join(texts).replace(",", " ").replace(";", " ")
    return sorted(set(plain.split()))
