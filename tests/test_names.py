"""Backbone names: what is read, what is refused, and what the refusal offers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractors.errors import InputError
from extractors.load import load_extractor
from extractors.names import SOURCES, BackboneName, parse_name


@pytest.mark.parametrize(
    ("name", "canonical", "revision"),
    [
        ("minilm", "minilm", None),
        (" minilm ", "minilm", None),
        ("toy:text", "toy:text-32", None),
        ("toy:image-8", "toy:image-8", None),
        ("st:all-mpnet-base-v2", "st:all-mpnet-base-v2", None),
        ("st:owner/name@v1.0", "st:owner/name@v1.0", "v1.0"),
        ("hf:owner/name@v1.0", "hf:owner/name@v1.0", "v1.0"),
        ("precomputed:384", "precomputed:384", None),
        ("module:my-net", "module:my-net", None),
        ("st:owner/name@refs/pr/1", "st:owner/name@refs/pr/1", "refs/pr/1"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k", None),
        ("timm:resnet18@abc123", "timm:resnet18@abc123", "abc123"),
        ("timm:hf-hub:owner/name@main", "timm:hf-hub:owner/name@main", "main"),
        ("timm:hf_hub:owner/name", "timm:hf-hub:owner/name", None),
        ("timm:timm/resnet18.a1_in1k", "timm:hf-hub:timm/resnet18.a1_in1k", None),
    ],
)
def test_names_have_one_canonical_form(name: str, canonical: str, revision: str | None) -> None:
    parsed = parse_name(name)
    assert str(parsed) == canonical
    assert parsed.revision == revision
    assert parse_name(str(parsed)) == parsed


def test_a_folder_alone_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        parse_name(f"{tmp_path}/nowhere")
    with pytest.raises(InputError, match="holds no backbone"):
        parse_name(str(tmp_path))
    for text, source in (('{"model_type": "bert"}', "hf"), ('{"architecture": "vit"}', "timm")):
        (tmp_path / "config.json").write_text(text)
        assert parse_name(str(tmp_path)).source == source
        assert parse_name(str(tmp_path)).folder == tmp_path
    (tmp_path / "modules.json").write_text("[]")
    assert parse_name(str(tmp_path)).source == "st"


@pytest.mark.parametrize(
    ("name", "offers"),
    [
        ("bert-base-uncased", ["'st:bert-base-uncased'", "'timm:bert-base-uncased'"]),
        ("owner/name", ["'st:owner/name'", "'timm:owner/name'"]),
        ("sentence:owner/name", ["'sentence'", "'st:owner/name'", "'timm:owner/name'"]),
        ("tim:resnet18", ["'timm:resnet18'"]),
        ("Minilm", ["'minilm'"]),
        ("minilm:L6", ["'minilm'"]),
        ("mini-lm", ["'minilm'"]),
        ("toy", ["'toy:ID'"]),
        ("toy:audio", ["'toy:text[-DIM]'", "'toy:image[-DIM]'"]),
        ("toy:text-1", ["between 2 and 4096"]),
        ("hf:", ["'hf:ID'"]),
        ("hf:./nowhere", ["no folder ./nowhere"]),
        ("precomputed:wide", ["precomputed:DIM"]),
        ("precomputed", ["'precomputed:ID'"]),
        ("module:a b", ["letters, digits"]),
        ("st:", ["'st:ID'"]),
        ("st:a/b/c", ["'st:owner/name'", "'st:./folder'"]),
        ("st:owner/name@", ["'st:ID@REVISION'"]),
        ("st:./nowhere", ["no folder ./nowhere"]),
        ("timm:local-dir:nowhere", ["no folder nowhere", "config.json"]),
        ("timm:ftp:name", ["timm:hf-hub:OWNER/NAME", "timm:local-dir:PATH"]),
        ("timm:res net", ["no timm model name"]),
        ("", ["'minilm'"]),
        ("a b", ["'minilm'"]),
    ],
)
def test_a_refusal_is_one_line_and_offers_what_was_meant(name: str, offers: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_name(name)
    message = str(caught.value)
    assert "\n" not in message
    for offer in offers:
        assert offer in message
    assert not message.rstrip("?").endswith(" ")


def test_a_folder_becomes_absolute_and_keeps_its_at_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model@home"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in (f"st:{folder}", "st:./model@home", "st:model@home"):
        parsed = parse_name(name)
        assert (parsed.folder, parsed.revision) == (folder, None)
        assert parse_name(str(parsed)) == parsed
    for name in (f"timm:local-dir:{folder}", "timm:local-dir:model@home", "timm:./model@home"):
        parsed = parse_name(name)
        assert str(parsed) == f"timm:local-dir:{folder}"
        assert (parsed.folder, parsed.revision) == (folder, None)
    assert parse_name("st:model@home").slug == "st-model-home"


def test_a_folder_that_holds_no_model_does_not_take_over_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("resnet18", "owner/name"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("timm:resnet18", "st:owner/name", "hf:owner/name"):
        assert str(parse_name(name)) == name
        assert parse_name(name).folder is None
    assert parse_name("timm:./resnet18").folder == tmp_path / "resnet18"
    (tmp_path / "resnet18" / "config.json").write_text("{}")
    assert parse_name("timm:resnet18").folder == tmp_path / "resnet18"
    with pytest.raises(InputError, match="the folder owner/name holds no backbone"):
        parse_name("owner/name")


@pytest.mark.parametrize("source", ["hf:", "st:", "timm:", "timm:hf-hub:", "timm:local-dir:", ""])
@pytest.mark.parametrize("mark", ["", "./", "~/", "/"])
def test_a_name_longer_than_a_path_can_be_is_refused(source: str, mark: str) -> None:
    with pytest.raises(InputError):
        parse_name(f"{source}{mark}{'a' * 5000}")


_WORD = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@given(
    source=st.sampled_from(["st", "hf", "timm"]),
    owner=st.none() | _WORD,
    model=_WORD,
    revision=st.none() | _WORD,
)
def test_what_is_written_is_read_back(
    source: str, owner: str | None, model: str, revision: str | None
) -> None:
    identity = f"{owner}/{model}" if owner else model
    parsed = parse_name(f"{source}:{identity}" + (f"@{revision}" if revision else ""))
    assert (parsed.source, parsed.revision) == (source, revision)
    assert parsed.id.removeprefix("hf-hub:") == identity
    assert parse_name(str(parsed)) == parsed


@given(text=st.text(max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        parsed = parse_name(text)
    except InputError as error:
        refusal = str(error)
    else:
        refusal = "none"
        assert isinstance(parsed, BackboneName)
        assert parsed.source in SOURCES
        assert re.fullmatch(r"[A-Za-z0-9._-]+", parsed.slug)
    assert len(refusal.splitlines()) == 1


def test_a_name_is_read_and_refused_without_importing_torch() -> None:
    script = """
import sys
from extractors import InputError, load_extractor
for name in ("minilm", "timm:resnet18", "st:owner/name", "toy:text"):
    load_extractor(name)
try:
    load_extractor("bert-base-uncased")
except InputError:
    pass
print(sorted({"torch", "timm", "transformers", "huggingface_hub"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == "[]"


def test_load_extractor_gives_the_adapter_of_the_source() -> None:
    assert load_extractor("minilm").modality == "text"
    assert load_extractor("timm:resnet18").modality == "image"
    assert load_extractor("toy:image").modality == "image"
    assert load_extractor("toy:text").name == "toy:text-32"
