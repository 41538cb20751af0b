"""If these fail, opening somebody else's file runs somebody else's program."""

from __future__ import annotations

import functools
import json
import operator
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from library.cli.errors import UserError
from library.cli.file_hashes import file_sha256
from library.data.caches.npz_files import opened_arrays
from library.models.layouts.vae_loading import load_vae
from library.models.options import ModelOptions
from library.models.registry import load_family
from library.models.text.embedding_files import read_embedding
from library.training.checkpoints.resuming import read_whole_state
from library.training.checkpoints.states import RunIdentity, read_state, write_state
from library.training.step_plan import Position
from networks.adapters.files import load_adapter


class Calls:
    """What a pickle does when it is read: it calls."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Only what can be called may stand first in a pickle's call: here, what an inner one gives."""


def kinds(canary: str) -> dict[str, object]:
    """Ten ways to make the file `canary` by being read."""
    touch = f"open({canary!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, f"touch '{canary}'"),
        "subprocess": Calls(subprocess.call, ["touch", canary]),
        "eval": Calls(eval, touch),
        "exec": Calls(exec, touch),
        "open": Calls(open, canary, "w"),
        "getattr": Calls(Calls(getattr, Calls(__import__, "os"), "mknod"), canary),
        "partial": Calls(functools.partial(os.mknod, canary)),
        "methodcaller": Calls(operator.methodcaller("touch"), Path(canary)),
        "a pickle in a pickle": Calls(pickle.loads, pickle.dumps(Calls(os.mknod, canary))),
        "a function of code": Calls(
            Calls(Calls(getattr, Calls(__import__, "types"), "FunctionType"), Calls(compile, touch, "x", "exec"), {})
        ),
    }


KINDS = list(kinds("x"))


def into_tensors(evil):
    return {"lora_unet_x.lora_down.weight": torch.zeros(2, 2), "other": evil}


def into_a_nested_place(evil):
    return {"state_dict": {"a": {"b": [torch.zeros(2), {"c": (evil,)}]}}}


def into_optimizer_state(evil):
    return {"optimizer": {"state": {0: {"exp_avg": torch.zeros(2), "step": evil}}, "param_groups": []}}


FORMS = {"beside tensors": into_tensors, "nested": into_a_nested_place, "in optimizer state": into_optimizer_state}


def save_with_torch(content, path):
    torch.save(content, path)


def save_as_before_zips(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_bare(content, path):
    path.write_bytes(pickle.dumps(content))


WRITERS = [save_with_torch, save_as_before_zips, save_bare]


def read_model(path):
    load_family(ModelOptions(pretrained_model_name_or_path=str(path)))


def read_vae(path):
    load_vae(str(path), 0.18215)


def read_lora(path):
    load_adapter(path)


def read_new_word(path):
    read_embedding(path)


READERS = {
    "model.ckpt": read_model, "model.bin": read_model, "vae.pt": read_vae, "lora.pt": read_lora,
    "word.pt": read_new_word, "word.bin": read_new_word,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", READERS)
def test_nothing_is_run_where_weights_are_read(tmp_path, kind, form, name):
    canary, path = tmp_path / "canary", tmp_path / name
    for write in WRITERS:
        write(FORMS[form](kinds(str(canary))[kind]), path)
        with pytest.raises(UserError) as caught:
            READERS[name](path)
        assert str(path) in str(caught.value)
        assert not canary.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", WRITERS)
def test_nothing_is_run_where_a_state_is_read(tmp_path, kind, write):
    """Whoever plants it will also put its checksum right."""
    canary, folder = tmp_path / "canary", tmp_path / "run-state"
    facts = RunIdentity(seed=1, num_micro_batches=1, group_size=1)
    write_state(folder, Position(), facts, {"w": torch.zeros(2)}, {"losses": torch.zeros(1)})
    for name in ("training.pt", "weights.safetensors"):
        honest, header = (folder / name).read_bytes(), (folder / "state.json").read_text()
        write(into_optimizer_state(kinds(str(canary))[kind]), folder / name)
        changed = json.loads(header)
        changed["files"][name] = {"size": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)}
        (folder / "state.json").write_text(json.dumps(changed))
        read_whole_state(str(folder))
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read_state(folder)
        assert not canary.exists()
        (folder / name).write_bytes(honest)
        (folder / "state.json").write_text(header)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_run_where_latents_are_read(tmp_path, kind):
    canary, path = tmp_path / "canary", tmp_path / "a_0064x0064_sd.npz"
    array = np.empty(1, dtype=object)
    array[0] = kinds(str(canary))[kind]
    np.savez(path, latents_8x8=array)
    with pytest.raises(ValueError, match="allow_pickle"), opened_arrays(path) as arrays:
        arrays["latents_8x8"]
    assert not canary.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_they_would_be_run_by_a_reader_that_trusts(tmp_path, kind):
    """Otherwise the tests above would show nothing."""
    canary = tmp_path / "canary"
    try:
        pickle.loads(pickle.dumps(kinds(str(canary))[kind]))
    except Exception as error:  # noqa: BLE001 - whatever it says, it has run
        assert canary.exists(), error
    assert canary.exists()
