"""Heads and backbones in other programs compute what the head does: torch, torch.export, ONNX."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CORPUS, save_backbone, save_image_model, save_text_model

from convex_heads.decode import Network, ReluNetwork
from convex_heads.scaling import Scaling
from extractors import load_extractor
from extractors.errors import InputError, MachineError
from extractors.options import FeatureOptions
from extractors.torchvision_compat import ensure_torchvision_imports
from tasks.artefact import Head, read_artefact, write_artefact
from tasks.cli import main
from tasks.export import export_head, set_classifier
from tasks.torch_head import TorchHead

D = 12
KINDS = [
    (activation, loss)
    for activation in ("gated_relu", "relu")
    for loss in ("softmax", "logistic", "squared", "one-vs-rest")
]


def make_head(activation: str, loss: str, *, d: int = D, units: int = 6, seed: int = 0) -> Head:
    """Random weights; columns of very different sizes, some of them constant."""
    rng = np.random.default_rng(seed)
    C = 1 if loss == "logistic" else 4
    loss = "logistic" if loss == "one-vs-rest" else loss
    scale = np.exp(rng.normal(size=d)).astype("f")
    keep = rng.random(d) > 0.2
    if d == D:
        scale[:3] = 1e-30, 1e4, 1.0  # MiniLM has columns of the first kind
        keep[:3] = True, True, False
    scaling = Scaling((scale * rng.normal(size=d)).astype("f"), scale, keep)
    rows = rng.normal(size=(units, d + 1)).astype("f")
    offset = rng.normal(size=C).astype("f")
    if activation == "relu":
        network = ReluNetwork(scaling, rows, rng.normal(size=(units, C)).astype("f"), offset, loss)
    else:
        weights = rng.normal(size=(units, d + 1, C)).astype("f") / 4
        network = Network(scaling, rows, weights, offset, loss)
    return Head(network, ("a", "b", "c", "d")[: max(2, C)], 1.7)


def make_rows(head: Head, n: int = 500, seed: int = 1) -> np.ndarray:
    """Raw features like those that the scaling was fitted on, none within round-off of a gate."""
    scaling, rng = head.network.scaling, np.random.default_rng(seed)
    X = scaling.mean + scaling.scale * rng.normal(size=(n, head.network.dim))
    X = X.astype("f")
    if isinstance(head.network, Network) and len(head.network.gates):
        exact = head.network.astype(np.float64)
        products = exact.scaling.transform(X.astype("d")) @ exact.gates.T
        X = X[np.abs(products).min(axis=1) > 1e-4]
    return X


@pytest.mark.parametrize(("activation", "loss"), KINDS)
def test_the_torch_module_is_the_head(activation, loss):
    head = make_head(activation, loss)
    X = make_rows(head)
    assert len(X) > 400
    module = head.to_torch()
    with torch.no_grad():
        scores = module.scores(torch.from_numpy(X)).numpy()
        p = module.probabilities(torch.from_numpy(X)).numpy()
        logits = module(torch.from_numpy(X))
    np.testing.assert_allclose(scores, head.network.scores(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(p, head.predict_proba(X), atol=1e-5)
    assert logits.shape == (len(X), len(head.classes)) == (len(X), module.out_features)
    if loss != "squared":
        expected = head.predict_proba(X)
        np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["gated_relu", "relu"])
def test_a_head_without_units_gives_its_offset(activation):
    head = make_head(activation, "softmax", units=0)
    X = make_rows(head, 3)
    with torch.no_grad():
        found = head.to_torch().scores(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(found, head.network.scores(X), atol=1e-6)
    np.testing.assert_allclose(found, np.tile(head.network.offset, (3, 1)), atol=1e-6)


def test_the_module_trains_moves_and_saves_like_any_other():
    head = make_head("gated_relu", "softmax")
    X = torch.from_numpy(make_rows(head, 20))
    encoder = torch.nn.Sequential(torch.nn.Identity(), head.to_torch())
    torch.nn.functional.cross_entropy(encoder(X), torch.zeros(len(X), dtype=torch.long)).backward()
    module = encoder[1]
    assert isinstance(module, TorchHead)
    assert module.weights.grad is not None
    assert float(module.weights.grad.abs().sum()) > 0
    again = make_head("gated_relu", "softmax", seed=5).to_torch()
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(again(X), module(X))
    assert module.double()(X.double()).dtype == torch.float64
    assert f"{D} -> 6 gated ReLU units -> 4" in repr(again)


@pytest.mark.slow
def test_it_takes_the_place_of_a_timm_classifier():
    ensure_torchvision_imports()
    import timm

    torch.manual_seed(0)
    for name in ("test_byobnet", "test_vit"):
        model = timm.create_model(name, pretrained=False, num_classes=7).eval()
        plain = timm.create_model(name, pretrained=False, num_classes=0).eval()
        plain.load_state_dict(model.state_dict(), strict=False)
        side = plain.pretrained_cfg["input_size"][-1]
        pixels = torch.randn(3, 3, side, side)
        with torch.no_grad():
            features = plain(pixels)
        head = make_head("gated_relu", "softmax", d=features.shape[1]).to_torch()
        with torch.no_grad():
            torch.testing.assert_close(set_classifier(model, head)(pixels), head(features))
        wrong = make_head("gated_relu", "softmax", d=3).to_torch()
        other = timm.create_model(name, pretrained=False, num_classes=7).eval()
        with pytest.raises(InputError, match="fitted on 3"):
            set_classifier(other, wrong)
        assert other(pixels).shape == (3, 7)  # as it was


@pytest.mark.slow
def test_it_is_a_step_of_a_scikit_learn_pipeline_before_export():
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    from convex_heads import ConvexHeadClassifier

    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 4)).astype("f")
    y = np.where(X[:, 0] * X[:, 1] > 0, "same", "other")
    steps = make_pipeline(FunctionTransformer(np.tanh), ConvexHeadClassifier(n_gates=8, beta=0.05))
    steps.fit(X, y)
    assert steps.score(X, y) > 0.8
    head = Head(steps[-1].network_, tuple(steps[-1].classes_))
    module = torch.nn.Sequential(torch.nn.Tanh(), head.to_torch())
    with torch.no_grad():
        p = torch.softmax(module(torch.from_numpy(X)), 1).numpy()
    np.testing.assert_allclose(p, steps.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "loss"),
    [KINDS[0], KINDS[3], pytest.param("relu", "logistic", marks=pytest.mark.slow)],
)
def test_onnx_computes_what_the_head_does_for_any_batch(activation, loss, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    head = make_head(activation, loss)
    path = tmp_path / "head.onnx"
    difference, opset = export_head(head, path, format="onnx", facts={"classes": head.classes})
    assert difference <= 1e-5
    assert opset is not None and opset >= 18
    assert list(tmp_path.iterdir()) == [path]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in (1, 2, 33):
        X = make_rows(head, n)
        logits, p = session.run(None, {"features": X})
        np.testing.assert_allclose(p, head.predict_proba(X), atol=1e-4)
        assert logits.shape == p.shape
    kept = session.get_modelmeta().custom_metadata_map
    assert json.loads(kept["classes"]) == list(head.classes)


def test_a_torch_program_computes_what_the_head_does(tmp_path):
    head = make_head("relu", "softmax")
    path = tmp_path / "head.pt2"
    export_head(head, path, format="torch", facts={"classes": head.classes})
    X = make_rows(head, 17)
    extra = {"convex_heads.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(X))[1], head.predict_proba(X), atol=1e-5)
    assert json.loads(extra["convex_heads.json"])["classes"] == list(head.classes)


def test_a_program_that_differs_is_not_written(tmp_path, monkeypatch):
    head = make_head("gated_relu", "softmax")
    broken = make_head("gated_relu", "softmax", seed=9)
    monkeypatch.setattr(Head, "to_torch", lambda _: TorchHead(broken.network).eval())
    with pytest.raises(MachineError, match="differs from the head"):
        export_head(head, tmp_path / "head.pt2", format="torch")
    assert list(tmp_path.iterdir()) == []


def test_what_no_onnx_file_can_hold_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.export._MOST_ONNX", 100)
    with pytest.raises(InputError, match="less than 2: use format torch"):
        export_head(make_head("relu", "softmax"), tmp_path / "head.onnx", format="onnx")
    assert not list(tmp_path.iterdir())


def export_with_backbone(name: str, path: Path, fmt: str, rows: list, **options) -> np.ndarray:
    from extractors.encode import encode_rows
    from extractors.graph import backbone_graph

    extractor = load_extractor(name, device="cpu", options=FeatureOptions(**options))
    head = make_head("gated_relu", "softmax", d=extractor.dim)
    graph = backbone_graph(extractor)
    difference, _ = export_head(head, path, format=fmt, graph=graph, rows=rows)
    assert difference <= 1e-4
    features = encode_rows(extractor, rows, [str(i) for i in range(len(rows))]).features
    return head.predict_proba(features)


@pytest.mark.slow
def test_a_text_backbone_goes_before_the_head_with_its_tokenizer(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from tokenizers import Tokenizer

    model = save_text_model("bert", tmp_path / "bert")
    texts = ["a fine film", "ants and bees live in houses of their own making " * 9, "day"]
    path = tmp_path / "model.onnx"
    expected = export_with_backbone(f"hf:{model}", path, "onnx", texts, max_length=24)
    # As another program would use it: the tokenizer's file and the ONNX file, nothing of ours.
    tokenizer = Tokenizer.from_file(str(tmp_path / "model.tokenizer.json"))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for text, p in zip(texts, expected, strict=True):
        found = tokenizer.encode(text)
        given = {"input_ids": [found.ids], "attention_mask": [found.attention_mask]}
        answer = session.run(
            ["probabilities"], {name: np.array(value, np.int64) for name, value in given.items()}
        )
        np.testing.assert_allclose(answer[0][0], p, atol=1e-4)


@pytest.mark.slow
def test_an_image_backbone_goes_before_the_head(tmp_path):
    model = save_image_model("vit", tmp_path / "vit")
    images = list(np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3), dtype=np.uint8))
    export_with_backbone(f"hf:{model}", tmp_path / "m.pt2", "torch", images, normalize="l2")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sentence", "bert", "gpt2", "mobilenetv3_small_050", "vit"])
def test_a_fine_tuned_backbone_is_exported_as_it_was_fine_tuned(kind, tmp_path, capsys):
    """The artefact holds only what was trained; the program must have it in its place."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from extractors.blocks import CutBackbone
    from extractors.changes import with_changes
    from extractors.encode import encode_rows
    from extractors.graph import backbone_graph
    from tasks.pipeline import ConvexHeadPipeline

    name = save_backbone(kind, tmp_path)
    plain = load_extractor(name, device="cpu")
    rng = np.random.default_rng(0)
    items = list(rng.integers(0, 256, (8, 40, 48, 3), dtype=np.uint8))
    if plain.modality == "text":
        items = [*CORPUS, *(" ".join(text.split()[:3]) for text in CORPUS)]
    trained = {
        key: (values + 0.1 * np.abs(values).mean() * rng.normal(size=values.shape)).astype("f")
        for key, values in CutBackbone(plain, 2, items[:3]).state().items()
    }
    tuned = with_changes(plain, trained)
    ids = list(map(str, range(len(items))))
    X = encode_rows(tuned, items, ids).features
    # A head on features as they are here, whatever their size.
    head = make_head("relu", "softmax", d=tuned.dim)
    scaling = Scaling(X.mean(axis=0), X.std(axis=0) + 1e-3, np.ones(X.shape[1], bool))
    head = replace(head, network=replace(head.network, scaling=scaling))
    write_artefact(
        tmp_path / "head",
        head,
        modality=plain.modality,
        backbone=name,
        backbone_fingerprint=tuned.fingerprint(),
        facts={},
        changes=trained,
    )
    clf = ConvexHeadPipeline.from_pretrained(tmp_path / "head", device="cpu")
    p = clf.predict_proba(items)
    published = encode_rows(load_extractor(name, device="cpu"), items, ids).features
    assert np.abs(head.predict_proba(published) - p).max() > 1e-2
    given = backbone_graph(clf.extractor)
    tensors = dict(zip(given.names, given.inputs(items), strict=True))
    for fmt in ("torch", "onnx"):
        out = tmp_path / f"model.{fmt}"
        export = ["export", str(tmp_path / "head"), "--format", fmt, "--out", str(out), "--quiet"]
        assert main([*export, "--with-backbone", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["max_difference"] <= 1e-4
        if fmt == "torch":
            found = torch.export.load(out).module()(*tensors.values())[1].numpy()
        else:
            session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
            arrays = {key: value.numpy() for key, value in tensors.items()}
            found = session.run(["probabilities"], arrays)[0]
        np.testing.assert_allclose(found, p, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("toy:text-8", {}, "is no torch model"),
        ("minilm", {"long_text": "windows"}, "in windows"),
        ("minilm", {"autocast": "bfloat16"}, "less than float32"),
    ],
)
def test_backbones_that_are_no_single_graph_are_refused(name, options, said):
    from extractors.graph import backbone_graph

    extractor = load_extractor(name, device="cpu", options=FeatureOptions(**options))
    with pytest.raises(InputError, match=said):
        backbone_graph(extractor)


def test_the_verb_writes_the_file_and_says_how_close_it_is(tmp_path, capsys):
    head = make_head("gated_relu", "softmax")
    write_artefact(
        tmp_path / "head",
        head,
        modality="features",
        backbone=f"precomputed:{D}",
        backbone_fingerprint={},
        facts={"certificate": {"relative_gap": 0.01}},
    )
    out = tmp_path / "out" / "head.pt2"
    command = ["export", str(tmp_path / "head"), "--out", str(out), "--format", "torch", "--quiet"]
    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["max_difference"] <= 1e-5
    assert record["inputs"] == ["features"]
    assert record["bytes"] == out.stat().st_size
    assert main(command) == 0
    assert "differ from the head's by" in capsys.readouterr().out
    assert main([*command, "--with-backbone"]) == 2
    assert "leave out --with-backbone" in capsys.readouterr().err
    assert main([*command[:2], "--quiet"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    X = make_rows(head, 5)
    again = read_artefact(tmp_path / "head").head.to_torch()
    with torch.no_grad():
        found = again.probabilities(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(found, head.predict_proba(X), atol=1e-5)


def prepared_by_hand(image: np.ndarray, how: dict) -> np.ndarray:
    """Pixels as another program makes them, from NAME.preprocessing.json and Pillow alone."""
    from PIL import Image

    made = Image.fromarray(image).convert(how["color"])
    if how["resize"] is not None:
        size, kind = how["resize"]["size"], how["resize"]["interpolation"]
        if isinstance(size, int):
            short = min(made.size)
            size = [int(size * side / short) for side in made.size[::-1]]
        made = made.resize(size[::-1], Image.Resampling[kind.upper()])
    if how["crop"] is not None:
        height, width = how["crop"]
        top, left = round((made.height - height) / 2), round((made.width - width) / 2)
        made = made.crop((left, top, left + width, top + height))
    values = np.asarray(made, np.float32) * how["scale"]
    return ((values - how["mean"]) / how["std"]).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["mobilenetv3_small_050", "vit"])
def test_how_pixels_are_made_is_written_beside_the_program_and_into_it(kind, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    extractor = load_extractor(save_backbone(kind, tmp_path), device="cpu")
    write_artefact(
        tmp_path / "head",
        make_head("gated_relu", "softmax", d=extractor.dim),
        modality="image",
        backbone=extractor.name,
        backbone_fingerprint=extractor.fingerprint(),
        facts={"certificate": {"relative_gap": 0.01}},
    )
    out = tmp_path / "model.onnx"
    assert (
        main(["export", str(tmp_path / "head"), "--out", str(out), "--with-backbone", "--quiet"])
        == 0
    )
    beside = tmp_path / "model.preprocessing.json"
    assert f"{beside}: how these are made" in capsys.readouterr().out
    how = json.loads(beside.read_text())
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    expected = np.asarray(extractor.prepare(image))
    np.testing.assert_allclose(prepared_by_hand(image, how), expected, atol=1e-5)
    model = onnx.load(out)
    held = {each.key: each.value for each in model.metadata_props}
    assert json.loads(held["preprocessing"]) == how
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["batch", *expected.shape]


def test_the_name_of_the_file_says_the_format(tmp_path):
    from tasks.config_saved import ExportConfig

    def kind(name, **given):
        return ExportConfig(artefact="head", out=Path(name), **given).kind

    assert [kind("a.onnx"), kind("a.pt2"), kind("a.bin")] == ["onnx", "torch", "onnx"]
    assert kind("a.bin", format="torch") == "torch"
    for name, asked in (("a.pt2", "onnx"), ("a.onnx", "torch")):
        with pytest.raises(InputError, match="change one of the two"):
            kind(name, format=asked)
