"""If these fail, a run ends with weights that cannot be written, or that no program opens."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from library.cli import documents
from library.cli.documents import valid_metadata
from library.models.text.embedding_files import EmbeddingVectors, write_embedding
from library.models.weights.weight_writing import stored, write_safetensors
from networks.adapters.files import save_adapter

LATIN_1 = b"caf\xe9".decode("utf-8", "surrogateescape")  # how Python names a file of that name
METADATA = {
    "ss_output_name": LATIN_1,
    LATIN_1: "a key",
    "ss_dataset_dirs": json.dumps({f"5_{LATIN_1}": {"img_count": 3}, "猫": {"img_count": 1}}),
    "ss_training_comment": "not JSON: \\udce9",
    "modelspec.title": "猫 😀",
}


def _write_embedding(path, metadata):
    vectors = EmbeddingVectors({"emb_params": torch.zeros(1, 1, 4)})
    write_embedding(path, vectors, name="x", dtype=torch.float32, metadata=metadata)


def _write_model(path, metadata):
    write_safetensors(path, {"a": stored(torch.ones(2), torch.float32)}, metadata)


def _write_lora(path, metadata):
    save_adapter(path, {"a": torch.ones(2)}, None, metadata)


WRITERS = (_write_lora, _write_model, _write_embedding)


@pytest.mark.parametrize("writer", WRITERS)
def test_names_that_are_not_utf8_do_not_lose_the_file(tmp_path, writer):
    path = tmp_path / "a.safetensors"
    writer(path, METADATA)
    with safe_open(path, "pt") as file:
        found = file.metadata()
    assert found["ss_output_name"] == "caf\\udce9" and found["caf\\udce9"] == "a key"
    assert json.loads(found["ss_dataset_dirs"]) == {"5_caf\\udce9": {"img_count": 3}, "猫": {"img_count": 1}}
    assert found["ss_training_comment"] == METADATA["ss_training_comment"] and found["modelspec.title"] == "猫 😀"


def test_a_header_that_readers_would_refuse_is_cut(tmp_path):
    """Captions of sentences, each of which counts as a tag: many of them are more than the 100 MB of a header."""
    tags = {f"{number:07d} {'long ' * 200}": 1 for number in range(10_000)}
    tables = {"5_cat": {"often": 9, **tags}, "2_dog": {"often": 7}}
    metadata = {
        "ss_tag_frequency": json.dumps(tables),
        "ss_datasets": json.dumps([{"batch_size_per_device": 2, "tag_frequency": tables}]),
        "ss_training_comment": "kept",
    }
    _write_lora(tmp_path / "a.safetensors", metadata)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        found = file.metadata()
    assert (tmp_path / "a.safetensors").stat().st_size < 17_000_000
    assert found["ss_training_comment"] == "kept"
    cut = json.loads(found["ss_tag_frequency"])
    note = next(name for name in cut if name.startswith("(cut"))
    assert cut["5_cat"]["often"] == 9 and cut["2_dog"] == {"often": 7} and cut[note] == {}
    num_kept = len(cut["5_cat"]) + 1
    assert note == f"(cut: the {num_kept} most frequent of 10002 tags)" and num_kept > 7_000
    (dataset,) = json.loads(found["ss_datasets"])
    assert dataset["batch_size_per_device"] == 2 and dataset["tag_frequency"] == cut


def test_other_entries_that_are_too_large_are_left_out(caplog, monkeypatch):
    monkeypatch.setattr(documents, "_MOST_BYTES", 100)
    metadata = {"ss_a": "x" * 200, "ss_b": "kept", "ss_datasets": json.dumps([1, "other programs'"])}
    assert valid_metadata(metadata) == {**metadata, "ss_a": "(left out: 202 bytes)"}
    assert "ss_a is too large" in caplog.text


_CHARACTERS = st.characters() | st.integers(0xD800, 0xDFFF).map(chr)


@given(st.dictionaries(st.text(max_size=5), st.text(_CHARACTERS, max_size=8), max_size=4))
@settings(max_examples=100, deadline=None)
def test_valid_metadata_is_unchanged_and_all_metadata_becomes_valid(metadata):
    valid = valid_metadata(metadata)
    assert all(f"{key}{value}".encode() is not None for key, value in valid.items())
    assert valid_metadata(valid) == valid
    if all(not "\ud800" <= character <= "\udfff" for text in [*metadata, *metadata.values()] for character in text):
        assert valid == metadata
