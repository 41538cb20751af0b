"""If these fail, networks other than LoRA are not resumed exactly, or the package LyCORIS does not train here."""

import importlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.cli.errors import UserError
from library.methods.foreign_networks import arguments_for
from library.methods.options import NetworkOptions
from tests.end_to_end.runs import BASE, assert_same, copy_images, logged, train

# the tensors of a layer, as the package names them in its files
LORA = {"alpha", "lora_down.weight", "lora_up.weight"}
LOHA = {"alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
LOKR = {"alpha", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}
TENSORS = {
    "": LORA,
    "algo=locon preset=full dora_wd=True": LORA | {"dora_scale"},
    "algo=loha": LOHA,
    "algo=lokr": LOKR,
    "algo=ia3": {"weight", "on_input"},
    "algo=glora": {"alpha", "a1.weight", "a2.weight", "b1.weight", "b2.weight"},
    "algo=diag-oft": {"alpha", "oft_blocks"},
    "algo=dylora": LORA,
}
RESUMED = [
    ("lycoris.kohya", "algo=loha dora_wd=True"),
    ("lycoris.kohya", "algo=lokr"),
    ("lycoris.kohya", "algo=dylora block_size=1"),
    ("networks.loha", "conv_dim=2 use_tucker=True rank_dropout=0.1"),
    ("networks.lokr", "factor=4 module_dropout=0.2"),
    ("networks.dylora", "unit=2"),
    ("networks.lora_fa", ""),
    ("networks.oft", ""),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return copy_images(tmp_path_factory.mktemp("images") / "data", 2)


def run(images, output, network_args, **options):
    given = {"network_module": "lycoris.kohya", "network_args": network_args or None, "max_train_steps": 1, **options}
    return train(images, output, **given)


def weight_shapes(part):
    (file,) = (BASE / part).glob("*.safetensors")
    return {key: tensor.shape for key, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def layer_names():
    """Of every Linear and convolution of the U-Net, and of the layers of the text encoder's blocks."""
    names = set()
    for prefix, part in (("lora_unet", "unet"), ("lora_te", "text_encoder")):
        for key, shape in weight_shapes(part).items():
            if key.endswith(".weight") and len(shape) > 1 and "embeddings" not in key:
                path = key.removesuffix(".weight")
                level = "" if part == "unet" or path.startswith("text_model") else "text_model."
                names.add(f"{prefix}_{level}{path}".replace(".", "_"))
    return names


@pytest.mark.parametrize("network_args", TENSORS)
def test_each_algorithm_trains_each_layer_once_under_its_name_elsewhere(images, tmp_path, layer_names, network_args):
    weights = run(images, tmp_path, network_args)
    assert {key.partition(".")[2] for key in weights} == TENSORS[network_args]
    assert {key.partition(".")[0] for key in weights} == layer_names
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize(("module", "network_args"), RESUMED)
def test_a_resumed_run_ends_with_the_weights_of_one_never_stopped(images, tmp_path, module, network_args):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox --w 32 --h 32 --s 1\n")
    limit = None if "algo=dylora" in network_args else 0.01
    options = {"network_module": module, "max_train_steps": 3, "scale_weight_norms": limit}
    saving = {"save_state": True, "save_every_n_steps": 2, "sample_prompts": prompts, "sample_every_n_steps": 3}
    whole = run(images, tmp_path / "whole", network_args, **options, **saving)
    state = tmp_path / "whole" / "run-step00000002-state"
    assert_same(run(images, tmp_path / "resumed", network_args, **options, resume=state), whole)
    assert list((tmp_path / "whole" / "sample").glob("*.png"))


def test_a_run_starts_from_its_files_and_their_layers(images, tmp_path):
    made = run(images, tmp_path / "made", "algo=loha", learning_rate=1e-2, max_train_steps=2)
    given = {"network_weights": tmp_path / "made" / "run.safetensors", "learning_rate": 1e-12}
    started = run(images, tmp_path / "start", "algo=loha", **given)
    same_layers = run(images, tmp_path / "layers", "", dim_from_weights=True, **given)
    for weights in (started, same_layers):
        torch.testing.assert_close(weights, made, rtol=0, atol=1e-7)
    assert logged(tmp_path / "start") == logged(tmp_path / "layers") != logged(tmp_path / "made")[:1]


def test_files_of_another_kind_are_merged_into_the_model_by_their_factor(images, tmp_path):
    """As strong as in a run that starts from such a file: a fresh network adds nothing."""
    made = run(images, tmp_path / "made", "algo=lokr", learning_rate=1e-2, max_train_steps=2)
    file = tmp_path / "made" / "run.safetensors"
    halved = tmp_path / "halved.safetensors"
    save_file({key: value / 2 if key.endswith("lokr_w1") else value for key, value in made.items()}, halved)
    frozen = {"learning_rate": 1e-12}
    run(images, tmp_path / "start", "algo=lokr", network_weights=halved, **frozen)
    run(images, tmp_path / "merged", "algo=loha", base_weights=file, base_weights_multiplier=0.5, **frozen)
    run(images, tmp_path / "plain", "algo=loha", **frozen)
    start, merged, plain = (logged(tmp_path / name)[0][1] for name in ("start", "merged", "plain"))
    assert start == pytest.approx(merged, rel=1e-5)
    assert abs(plain / merged - 1) > 1e-3  # else the comparison says nothing


def test_a_file_that_the_package_loads_nothing_of_is_refused(images, tmp_path):
    run(images, tmp_path / "made", "algo=loha")
    with pytest.raises(UserError, match="loads none of its weights"):
        run(images, tmp_path / "lokr", "algo=lokr", network_weights=tmp_path / "made" / "run.safetensors")


@pytest.mark.parametrize(("algo", "given"), [("locon", 0.5), ("diag-oft", 0.5), ("loha", None), ("lokr", None)])
def test_dropout_reaches_the_algorithms_that_have_it(algo, given, caplog):
    kohya = importlib.import_module("lycoris.kohya")
    options = NetworkOptions(network_dropout=0.5, network_args=(f"algo={algo}",))
    assert arguments_for(kohya, options).get("dropout") == given
    assert ("--network_dropout does nothing" in caplog.text) == (given is None)


def test_ranks_drawn_again_are_refused_before_training(images, tmp_path):
    with pytest.raises(UserError, match="algo=dylora of lycoris.kohya draws other ranks"):
        run(images, tmp_path, "algo=dylora", gradient_checkpointing=True)
