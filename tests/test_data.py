"""Named tasks and a person's own data become the same kind of data set."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from extractors.errors import InputError, MachineError
from tasks import load_task
from tasks.data.load import Dataset
from tasks.data.registry import TASKS, read_idx, wordnet_split
from tasks.data.sources import list_tasks

TEXTS = [f"{word} film number {i}" for i in range(30) for word in ("fine", "dull")]
LABELS = ["pos", "neg"] * 30


def write_csv(path: Path, texts=TEXTS, labels=LABELS, header="text,label") -> Path:
    rows = "".join(f'"{text}",{label}\n' for text, label in zip(texts, labels, strict=True))
    path.write_text(f"{header}\n{rows}", encoding="utf-8")
    return path


def write_json_lines(path: Path, texts=TEXTS, labels=LABELS) -> Path:
    rows = zip(texts, labels, strict=True)
    path.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows))
    return path


def write_parquet(path: Path, texts=TEXTS, labels=LABELS) -> Path:
    parquet.write_table(pa.table({"text": texts, "label": labels}), path)
    return path


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def sizes(data: Dataset) -> tuple[int, int, int]:
    assert list(data.splits) == ["train", "validation", "test"]
    return tuple(len(rows) for rows in data.splits.values())  # type: ignore[return-value]


# ---- named tasks ----


def test_wordnet6_is_the_fixed_task():
    data = load_task("wordnet6")
    assert sizes(data) == (14622, 2154, 4179)
    assert sum(sizes(data)) == 20955
    assert data.classes == ("animal", "artifact", "food", "natural object", "person", "plant")
    labels = np.concatenate([rows.labels for rows in data.splits.values()])
    assert np.bincount(labels).tolist() == [3885, 7928, 1855, 238, 2813, 4236]
    for split, rows in data.splits.items():
        assert all(wordnet_split(synset) == split for synset in rows.ids)


def test_loading_wordnet6_does_not_import_timm(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; from tasks import load_task; load_task('wordnet6'); "
        "print(sorted({'timm', 'torch', 'jax', 'sklearn', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits_are_grey_images_of_full_range():
    data = load_task("digits")
    assert data.modality == "image"
    assert data.classes == tuple("0123456789")
    images = np.stack([np.asarray(image) for image in data.splits["train"].inputs])
    assert images.dtype == np.uint8
    assert images.shape[1:] == (8, 8)
    assert (images.min(), images.max()) == (0, 255)
    assert sum(sizes(data)) == 1797


@pytest.mark.parametrize(
    ("task", "expected", "classes"),
    [
        ("imdb", (21250, 3750, 25000), 2),
        ("sst2", (6920, 872, 1821), 2),
        ("trec6", (4636, 816, 500), 6),
        ("banking77", (8504, 1499, 3080), 77),
        ("cifar10", (17000, 3000, 4000), 10),
        ("fashion_mnist", (51000, 9000, 10000), 10),
        ("hymenoptera", (208, 36, 153), 2),
    ],
)
def test_named_tasks_from_a_data_root(shared_data, task, expected, classes):
    data = load_task(task, data_root=shared_data)
    assert sizes(data) == expected
    assert data.name == task
    assert data.modality == TASKS[task].modality
    names = json.loads((shared_data / task / "classes.json").read_text())
    assert list(data.classes) == names
    assert len(names) == classes == TASKS[task].n_classes
    ids = [row_id for rows in data.splits.values() for row_id in rows.ids]
    assert len(set(ids)) == len(ids)
    for rows in data.splits.values():
        assert set(rows.labels.tolist()) <= set(range(classes))


def test_labels_and_inputs_belong_together(shared_data):
    table = parquet.read_table(shared_data / "trec6" / "train.parquet").to_pylist()
    data = load_task("trec6", data_root=shared_data)
    for split in ("train", "validation"):
        rows = data.splits[split]
        for row_id, text, label in zip(rows.ids, rows.inputs, rows.labels, strict=True):
            source = table[int(row_id.removeprefix("train/"))]
            assert (text, label) == (source["text"], source["label"])


def test_a_data_set_with_only_train_and_val_is_tested_on_val_and_says_so(shared_data):
    data = load_task("hymenoptera", data_root=shared_data)
    assert all(row_id.startswith("val/") for row_id in data.splits["test"].ids)
    assert any("'val' is used as test" in note for note in data.notes)


def test_digests_say_which_inputs_are_in_test_and_in_train(shared_data):
    data = load_task("trec6", data_root=shared_data, train_rows=5000)
    assert {name: len(each) for name, each in data.digests.items()} == dict(
        zip(("train", "validation", "test"), sizes(data), strict=True)
    )
    seen = {*data.digests["train"], *data.digests["validation"]}
    texts = {*data.splits["train"].inputs, *data.splits["validation"].inputs}
    repeated = [digest in seen for digest in data.digests["test"]]
    assert repeated == [text in texts for text in data.splits["test"].inputs]
    assert sum(repeated) >= 8


def test_the_environment_names_the_data_root(shared_data, monkeypatch):
    monkeypatch.setenv("CONVEX_HEADS_DATA", str(shared_data))
    assert sizes(load_task("sst2")) == (6920, 872, 1821)


def test_list_tasks_says_what_is_at_hand(tmp_path, monkeypatch):
    monkeypatch.delenv("CONVEX_HEADS_DATA", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "root" / "sst2").mkdir(parents=True)
    write_parquet(tmp_path / "root" / "sst2" / "train.parquet")
    at_hand = {task.name: task.at_hand for task in list_tasks(tmp_path / "root")}
    assert [name for name, here in at_hand.items() if here] == ["wordnet6", "digits", "sst2"]
    assert list(at_hand) == list(TASKS)
    write_csv(tmp_path / "root" / "sst2" / "train.csv")
    told = {task.name: (task.at_hand, task.source) for task in list_tasks(tmp_path / "root")}
    assert list(told) == list(TASKS)
    assert not told["sst2"][0] and "keep one of them" in told["sst2"][1]


def test_no_network_and_nothing_cached_is_the_machine(tmp_path):
    with pytest.raises(MachineError, match=r"no network and nothing cached.*data_root") as caught:
        load_task("imdb", data_root=tmp_path)
    assert "\n" not in str(caught.value)


def test_idx_files_round_trip(tmp_path):
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    header = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">i4").tobytes()
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(header + pixels.tobytes()))
    assert np.array_equal(read_idx(path), pixels)
    path.write_bytes(gzip.compress(header + pixels.tobytes()[:-1]))
    with pytest.raises(InputError, match="not a complete idx file"):
        read_idx(path)


# ---- a person's own data ----


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("d.csv", write_csv),
        ("d.jsonl", write_json_lines),
        ("d.parquet", write_parquet),
        (
            "d.tsv",
            lambda p: p.write_text(
                write_csv(p).read_text().replace('",', '"\t').replace("text,label", "text\tlabel")
            ),
        ),
    ],
)
def test_every_table_format_gives_the_same_rows(tmp_path, name, write):
    write(tmp_path / name)
    data = load_task(tmp_path / name)
    reference = load_task(write_csv(tmp_path / "reference.csv"))
    assert data.classes == ("neg", "pos")
    assert sizes(data) == (40, 8, 12)  # 6 of 30 a class for test, 4 of 24 for validation
    assert data.fingerprint == reference.fingerprint
    assert data.splits["test"].inputs == reference.splits["test"].inputs


def test_text_that_a_reader_could_take_for_numbers_stays_text(tmp_path):
    texts = [f"0{i}" for i in range(20)]
    data = load_task(write_csv(tmp_path / "d.csv", texts, ["10", "9.0"] * 10))
    assert data.splits["train"].inputs[0].startswith("0")
    assert data.classes == ("9", "10")  # integers, in numerical order
    data = load_task(write_csv(tmp_path / "d.csv", texts, ["01", "1"] * 10))
    assert data.classes == ("01", "1")  # codes, and two different ones


def test_line_breaks_quotes_and_other_scripts_survive_csv(tmp_path):
    texts = [f'line one\nline "" two, {i} – žluťoučký 映画' for i in range(20)]
    data = load_task(write_csv(tmp_path / "d.csv", texts, [0, 1] * 10))
    assert sorted(text for rows in data.splits.values() for text in rows.inputs) == sorted(
        text.replace('""', '"') for text in texts
    )


@pytest.mark.parametrize("header", ["sentence,labels", "review,class", "TEXT,Label"])
def test_usual_columns_are_found(tmp_path, header):
    assert sizes(load_task(write_csv(tmp_path / "d.csv", header=header))) == (40, 8, 12)


def test_named_columns_win(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text(
        "text,body,label,stars\n" + "".join(f"wrong,right {i},x,{i % 2}\n" for i in range(20))
    )
    data = load_task(path, text_column="body", label_column="stars")
    assert all(text.startswith("right") for text in data.splits["train"].inputs)
    assert data.classes == ("0", "1")


def test_given_splits_are_respected(tmp_path):
    write_csv(tmp_path / "train.csv")
    write_json_lines(tmp_path / "dev.jsonl", TEXTS[:6], LABELS[:6])
    write_parquet(tmp_path / "test.parquet", TEXTS[:4], LABELS[:4])
    data = load_task(tmp_path)
    assert sizes(data) == (60, 6, 4)
    assert data.splits["validation"].ids[0] == "dev/000000"
    assert data.name == tmp_path.name


def test_pieces_of_a_split_are_joined_in_order(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", TEXTS[:30], LABELS[:30])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", TEXTS[30:], LABELS[30:])
    write_parquet(tmp_path / "test.parquet", TEXTS[:4], LABELS[:4])
    whole = tmp_path / "whole"
    whole.mkdir()
    write_parquet(whole / "train.parquet")
    write_parquet(whole / "test.parquet", TEXTS[:4], LABELS[:4])
    assert load_task(tmp_path).fingerprint == load_task(whole).fingerprint


def test_integer_labels_take_names_from_classes_json(tmp_path):
    write_csv(tmp_path / "train.csv", labels=[1, 0] * 30)
    (tmp_path / "classes.json").write_text('["dull", "fine"]')
    data = load_task(tmp_path)
    assert data.classes == ("dull", "fine")
    rows = data.splits["train"]
    assert all(
        text.startswith(data.classes[y]) for text, y in zip(rows.inputs, rows.labels, strict=True)
    )


def test_integers_are_indices_also_where_names_are_digits(tmp_path):
    # By name a file without the first class would have other classes than one with it.
    (tmp_path / "classes.json").write_text('["1", "2", "3"]')
    for labels, classes in (([0, 1, 2], ("1", "2", "3")), ([1, 2, 1], ("2", "3"))):
        table = pa.table({"text": TEXTS, "label": labels * 20})
        parquet.write_table(table, tmp_path / "train.parquet")
        assert load_task(tmp_path).classes == classes
    (tmp_path / "train.parquet").unlink()
    write_csv(tmp_path / "train.csv", labels=["3", "1"] * 30)
    assert load_task(tmp_path).classes == ("1", "3")


def test_data_sets_of_different_names_have_different_folders(tmp_path):
    for name in ("films.v1.csv", "films.v2.csv"):
        write_csv(tmp_path / name)
    slugs = [load_task(tmp_path / name).slug for name in ("films.v1.csv", "films.v2.csv")]
    assert slugs == ["films.v1", "films.v2"]


def test_a_named_task_has_its_own_columns_in_a_data_root_too(tmp_path):
    folder = tmp_path / "trec6"
    folder.mkdir()
    fine = [f"kind {i % 12}" for i in range(60)]
    coarse = [f"group {i % 2}" for i in range(60)]
    table = pa.table({"text": TEXTS, "label": fine, "label_coarse_original": coarse})
    parquet.write_table(table, folder / "train.parquet")
    assert load_task("trec6", data_root=tmp_path).classes == ("group 0", "group 1")
    own = load_task("trec6", data_root=tmp_path, label_column="label")
    assert len(own.classes) == 12


def test_a_class_without_rows_is_left_out(tmp_path):
    write_csv(tmp_path / "train.csv", labels=[2, 0] * 30)
    (tmp_path / "classes.json").write_text('["dull", "never", "fine"]')
    data = load_task(tmp_path)
    assert data.classes == ("dull", "fine")
    assert set(data.splits["train"].labels.tolist()) == {0, 1}


def test_label_names_of_a_hub_export_are_read_from_the_file(tmp_path):
    names = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}}}
    table = pa.table({"text": TEXTS, "label": [1, 0] * 30})
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    parquet.write_table(table, tmp_path / "d.parquet")
    assert load_task(tmp_path / "d.parquet").classes == ("no", "yes")


def image_folder(root: Path, counts: dict[str, int]) -> None:
    value = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            value += 1
            (root / folder / f"{i:03d}.png").write_bytes(png(value % 256))


def test_a_folder_of_images_has_a_class_per_folder(tmp_path):
    image_folder(tmp_path, {"ants": 10, "bees": 20})
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    data = load_task(tmp_path)
    assert data.modality == "image"
    assert data.classes == ("ants", "bees")
    assert sizes(data) == (21, 3, 6)  # ants 10 -> 2 -> 1, bees 20 -> 4 -> 2
    assert data.splits["train"].ids[0].startswith("ants/")
    assert data.splits["train"].inputs[0].is_file()
    assert any("notes holds no images" in note for note in data.notes)


def test_a_folder_of_images_may_be_divided(tmp_path):
    image_folder(tmp_path, {"train/a": 10, "train/b": 10, "test/a": 3, "test/b": 2})
    data = load_task(tmp_path)
    assert sizes(data) == (16, 4, 5)
    assert data.splits["test"].ids[0] == "test/a/000.png"


def test_image_bytes_and_paths_in_tables(tmp_path):
    images = [png(i) for i in range(20)]
    cells = [{"bytes": image, "path": None} for image in images]
    parquet.write_table(pa.table({"image": cells, "label": [0, 1] * 10}), tmp_path / "a.parquet")
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(image)
    names = [f"{i}.png" for i in range(20)]
    write_csv(tmp_path / "b.csv", names, [0, 1] * 10, "image,label")
    stored, named = load_task(tmp_path / "a.parquet"), load_task(tmp_path / "b.csv")
    assert stored.splits["train"].inputs[0] == named.splits["train"].inputs[0].read_bytes()
    assert stored.fingerprint == named.fingerprint


def test_two_columns_of_texts_make_one_input(tmp_path):
    path = tmp_path / "pairs.csv"
    lines = [f"who {i}?,it was {i},{'yes' if i % 2 else 'no'}" for i in range(40)]
    path.write_text("q,a,label\n" + "\n".join(lines) + "\n")
    data = load_task(path, text_column="q+a")
    assert sorted(data.splits["train"].inputs)[0].startswith("who 0? [SEP] it was 0")
    for chosen, told in (
        ("q+b", "no column 'b'"),
        ("q+a+label", "or two with a"),
        ("q+", "or two"),
    ):
        with pytest.raises(InputError, match=told):
            load_task(path, text_column=chosen)
    # A named task in the data root needs no option.
    folder = tmp_path / "root" / "rte"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        text = "\n".join(line.replace("yes", "1").replace("no", "0") for line in lines)
        (folder / f"{split}.csv").write_text("sentence1,sentence2,label\n" + text + "\n")
    found = load_task("rte", data_root=tmp_path / "root")
    assert "who 1? [SEP] it was 1" in found.splits["test"].inputs
    # With the test file that GLUE publishes, whose labels are secret.
    text = "\n".join(f"{line.rpartition(',')[0]},-1" for line in lines)
    (folder / "test.csv").write_text("sentence1,sentence2,label\n" + text + "\n")
    again = load_task("rte", data_root=tmp_path / "root")
    assert again.splits["test"].inputs == found.splits["test"].inputs
    assert any("secret (-1)" in note for note in again.notes)


# ---- fewer rows, and the fingerprint ----


def test_train_rows_keep_the_ratio_where_validation_was_taken_from_train(tmp_path):
    texts = [f"text {i}" for i in range(1000)]
    write_csv(tmp_path / "d.csv", texts, ["a", "b"] * 500)
    full = load_task(tmp_path / "d.csv")
    small = load_task(tmp_path / "d.csv", train_rows=200, test_rows=100)
    smaller = load_task(tmp_path / "d.csv", train_rows=100)
    assert sizes(full) == (680, 120, 200)
    assert sizes(small) == (170, 30, 100)
    assert sizes(smaller) == (85, 15, 200)
    for split in full.splits:
        assert set(small.splits[split].ids) <= set(full.splits[split].ids)
        counts = Counter(small.splits[split].labels.tolist())
        assert abs(counts[0] - counts[1]) <= 1
    assert set(smaller.splits["train"].ids) <= set(small.splits["train"].ids)
    assert small.fingerprint == full.fingerprint  # one store serves both
    other = load_task(tmp_path / "d.csv", train_rows=200, seed=1)
    assert other.splits["train"].ids != small.splits["train"].ids
    assert other.splits["test"].ids == full.splits["test"].ids


def test_train_rows_count_train_alone_where_validation_was_given(tmp_path):
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "validation.csv")
    write_csv(tmp_path / "test.csv")
    assert sizes(load_task(tmp_path, train_rows=10)) == (10, 60, 60)


def test_all_rows_may_be_asked_for(tmp_path):
    path = write_csv(tmp_path / "d.csv")
    assert sizes(load_task(path, train_rows=48, test_rows=12)) == (40, 8, 12)


def test_the_fingerprint_changes_with_a_text_and_with_a_label_and_not_with_a_name(tmp_path):
    prints = [load_task(write_csv(tmp_path / "a.csv")).fingerprint["sha256"]]
    prints.append(
        load_task(write_csv(tmp_path / "b.csv", ["new", *TEXTS[1:]])).fingerprint["sha256"]
    )
    swapped = [*LABELS[:2][::-1], *LABELS[2:]]
    prints.append(load_task(write_csv(tmp_path / "c.csv", labels=swapped)).fingerprint["sha256"])
    assert len(set(prints)) == 3
    assert load_task(write_csv(tmp_path / "other.csv")).fingerprint["sha256"] == prints[0]
