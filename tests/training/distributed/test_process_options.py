"""If these fail, options of several processes are lost on the way, or a run begins that cannot be had."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from library.cli.errors import UserError, UserErrors
from library.training.distributed.options import ProcessOptions
from library.training.distributed.plans import (
    OPTIMIZERS,
    FSDPConfig,
    ZeroConfig,
    sharding_config,
    sharding_problems,
    without_effect,
)
from library.training.optimization.options import AverageOptions, OptimizerOptions
from library.training.options import TrainingOptions
from tests.end_to_end.runs import ROOT, arguments, copy_images, run_command
from tests.end_to_end.whole_models import write_metadata

# the variables that `accelerate launch` of accelerate 1.15 sets
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
FSDP1, FSDP2 = {**FSDP, "FSDP_VERSION": "1"}, {**FSDP, "FSDP_VERSION": "2"}


@pytest.fixture(autouse=True)
def deepspeed_is_installed(monkeypatch):
    set_version(monkeypatch, "0.19.8")


def set_version(monkeypatch, version):
    """The version of DeepSpeed that is installed; None for none."""

    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr("importlib.metadata.version", installed)


def refusals(options, variables):
    with pytest.raises(UserError) as caught:
        sharding_config(options, variables)
    error = caught.value
    return [str(each) for each in (error.errors if isinstance(error, UserErrors) else [error])]


@pytest.mark.parametrize(
    ("options", "variables", "plan"),
    [
        ({}, {}, None),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": "false"}, None),
        ({"deepspeed": True}, {}, ZeroConfig(2)),
        ({"deepspeed": True, "zero_stage": 0}, {}, None),
        ({"deepspeed": True, "zero_stage": 1, "offload_optimizer_device": "cpu"}, {}, ZeroConfig(1, True)),
        ({"zero_stage": 3, "offload_param_device": "cpu"}, DEEPSPEED, ZeroConfig(3, False, True)),
        (
            {},
            {
                **DEEPSPEED,
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
                "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
            },
            ZeroConfig(3, True),
        ),
        # an option wins over accelerate's configuration
        ({"zero_stage": 1}, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, ZeroConfig(1)),
        ({}, FSDP2, FSDPConfig()),
        ({}, {**FSDP2, "FSDP_RESHARD_AFTER_FORWARD": "false"}, FSDPConfig(frees_after_forward=False)),
        ({}, {**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}, FSDPConfig(offloads=True)),
        (
            {},
            {
                **FSDP2,
                "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                "FSDP_TRANSFORMER_CLS_TO_WRAP": "ResnetBlock2D, CLIPEncoderLayer",
            },
            FSDPConfig(units="classes", unit_classes=("ResnetBlock2D", "CLIPEncoderLayer")),
        ),
        ({}, {**FSDP2, "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, FSDPConfig(units="size", unit_size=100_000_000)),
        ({}, FSDP1, FSDPConfig()),
        ({}, {**FSDP1, "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}, FSDPConfig(frees_after_forward=False)),
        ({}, {**FSDP1, "FSDP_SHARDING_STRATEGY": "2"}, FSDPConfig(frees_after_forward=False)),
        ({}, {**FSDP1, "FSDP_SHARDING_STRATEGY": "NO_SHARD"}, None),
        ({}, {**FSDP1, "FSDP_RESHARD_AFTER_FORWARD": "SHARD_GRAD_OP"}, FSDPConfig(frees_after_forward=False)),
    ],
)
def test_options_and_accelerates_variables_say_what_is_shared_out(options, variables, plan):
    found = sharding_config(ProcessOptions(**options), variables)
    if isinstance(found, FSDPConfig) and found.units != "size":
        assert found == FSDPConfig(**{**vars(plan), "unit_size": found.unit_size})
    else:
        assert found == plan


@pytest.mark.parametrize(
    ("options", "variables", "refusal"),
    [
        ({"deepspeed": True, "offload_optimizer_device": "nvme"}, {}, "--offload_optimizer_device nvme: "),
        ({"deepspeed": True, "zero_stage": 3, "offload_param_device": "nvme"}, {}, "--offload_param_device nvme: "),
        ({"deepspeed": True, "offload_param_nvme_path": "disk"}, {}, "--offload_param_nvme_path: "),
        ({"deepspeed": True, "offload_param_device": "cpu"}, {}, "--offload_param_device cpu with --zero_stage 2"),
        (
            {"deepspeed": True, "zero_stage": 0, "offload_optimizer_device": "cpu"},
            {},
            "--offload_optimizer_device cpu with --zero_stage 0",
        ),
        ({"deepspeed": True, "fp16_master_weights_and_gradients": True}, {}, "--fp16_master_weights_and_gradients: "),
        ({}, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "two"}, "--zero_stage two is not 0, 1, 2 or 3"),
        ({}, {**FSDP1, "FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"}, "configured for FSDP with HYBRID_SHARD"),
        ({}, {**FSDP2, "FSDP_AUTO_WRAP_POLICY": "SOMEHOW"}, "FSDP with fsdp_auto_wrap_policy SOMEHOW"),
        ({}, {"ACCELERATE_USE_MEGATRON_LM": "true"}, "accelerate is configured for Megatron-LM"),
        ({}, {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "accelerate is configured for a parallelism configuration"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(options, variables, refusal):
    (line,) = refusals(ProcessOptions(**options), variables)
    assert refusal in line and len(line.splitlines()) == 2


@pytest.mark.parametrize(
    ("version", "said"),
    [(None, "which is not installed"), ("0.19.7", "0.19.7, which is installed, applies"), ("0.9", "needs deepspeed")],
)
def test_without_the_package_or_its_newest_bugs_mended_nothing_begins(monkeypatch, version, said):
    set_version(monkeypatch, version)
    (line,) = refusals(ProcessOptions(deepspeed=True), {})
    assert said in line and "pip install" in line


@pytest.mark.parametrize("version", ["0.19.8", "0.20.0+cu128", "1.0"])
def test_newer_ones_will_do(monkeypatch, version):
    set_version(monkeypatch, version)
    assert sharding_config(ProcessOptions(deepspeed=True), {}) == ZeroConfig(2)


def test_deepspeeds_own_file_is_read_where_accelerates_configuration_names_it(tmp_path):
    path = tmp_path / "zero.json"
    variables = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path), "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}
    section = {"stage": 3, "offload_param": {"device": "cpu"}, "overlap_comm": False, "reduce_bucket_size": "auto"}
    path.write_text(json.dumps({"zero_optimization": section, "train_batch_size": "auto", "bf16": {"enabled": "auto"}}))
    assert sharding_config(ProcessOptions(), variables) == ZeroConfig(3, False, True, {"overlap_comm": False})
    path.write_text(json.dumps({"zero_optimization": section, "optimizer": {"type": "Adam"}, "flops_profiler": {}}))
    lines = refusals(ProcessOptions(), variables)
    assert "sets optimizer" in lines[0] and "--optimizer_type" in lines[0] and "sets flops_profiler" in lines[1]
    path.write_text("{")
    assert "is not valid JSON" in refusals(ProcessOptions(), variables)[0]
    path.unlink()
    assert "cannot be read" in refusals(ProcessOptions(), variables)[0]


@pytest.mark.parametrize(
    ("name", "training", "compiles", "refusal"),
    [
        ("AdaFactor", {}, False, "with --optimizer_type AdaFactor"),
        ("AdamW8bit", {}, False, "with --optimizer_type AdamW8bit"),
        ("Prodigy", {}, False, "with --optimizer_type Prodigy"),
        ("AdamW", {"mixed_precision": "fp16"}, False, "with --mixed_precision fp16"),
        ("AdamW", {"fused_backward_pass": True}, False, "with --fused_backward_pass"),
        ("AdamW", {}, True, "with --torch_compile"),
    ],
)
@pytest.mark.parametrize("plan", [ZeroConfig(2), FSDPConfig()])
def test_options_that_need_all_of_it_in_one_process_are_refused(plan, name, training, compiles, refusal):
    optimizer, training = OptimizerOptions(optimizer_type=name), TrainingOptions(**training)
    (problem,) = sharding_problems(plan, training, optimizer, AverageOptions(), compiles)
    assert problem.message.startswith(f"{plan.flag} {refusal}") and problem.hint


def test_what_one_way_cannot_the_other_can():
    half = TrainingOptions(mixed_precision="bf16", full_bf16=True)
    for plan, training, average, count in (
        (ZeroConfig(2), half, AverageOptions(), 1),
        (FSDPConfig(), half, AverageOptions(), 0),
        (ZeroConfig(3), TrainingOptions(), AverageOptions(ema=True), 1),
        (ZeroConfig(2), TrainingOptions(), AverageOptions(ema=True), 0),
        (FSDPConfig(), TrainingOptions(), AverageOptions(ema=True), 0),
    ):
        assert len(list(sharding_problems(plan, training, OptimizerOptions(), average, False))) == count
    for name in (*OPTIMIZERS, "adamw", "torch.optim.SGD"):
        options = OptimizerOptions(optimizer_type=name)
        assert list(sharding_problems(FSDPConfig(), TrainingOptions(), options, AverageOptions(), False)) == []


@pytest.mark.parametrize(
    ("options", "variables", "line"),
    [
        ({"zero_stage": 2, "offload_param_device": "cpu"}, {}, "--zero_stage, --offload_param_device without --deepsp"),
        ({"deepspeed": True, "zero3_init_flag": True}, {}, "--zero3_init_flag does nothing"),
        ({"deepspeed": True, "zero3_save_16bit_model": True}, {}, "--zero3_save_16bit_model does nothing"),
        ({}, {**DEEPSPEED, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--gradient_accumulation_steps 1 is used"),
        ({}, {**DEEPSPEED, "ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "--max_grad_norm 1 is used"),
        ({}, {**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use --gradient_checkpointing"),
    ],
)
def test_what_does_nothing_is_said(options, variables, line):
    (said,) = without_effect(ProcessOptions(**options), variables, TrainingOptions())
    assert line in said


def test_what_agrees_is_not_said():
    variables = {**DEEPSPEED, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}
    assert list(without_effect(ProcessOptions(), variables, TrainingOptions())) == []
    assert list(without_effect(ProcessOptions(), FSDP2, TrainingOptions())) == []


@pytest.mark.parametrize(
    ("script", "options", "variables", "refusal"),
    [
        ("train_db.py", {"stop_text_encoder_training": 3}, FSDP2, "error: FSDP with --stop_text_encoder_training 3"),
        ("train_db.py", {"optimizer_type": "AdaFactor"}, FSDP2, "error: FSDP with --optimizer_type AdaFactor"),
        ("train_network.py", {}, FSDP2, "error: FSDP would shard the weights"),
        ("fine_tune.py", {}, {**FSDP2, "FSDP_AUTO_WRAP_POLICY": "SOMEHOW"}, "error: accelerate is configured for FSDP"),
    ],
)
def test_the_refusal_is_all_that_happens(tmp_path, script, options, variables, refusal):
    data = copy_images(tmp_path / "images")
    options |= write_metadata(data) if script == "fine_tune.py" else {}
    argv = arguments(data, tmp_path / "output", **options)
    env = {**os.environ, **variables}
    command = [sys.executable, script, *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith(refusal) and len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "output").exists()


def test_a_network_is_small_and_trains_as_ever(tmp_path):
    argv = arguments(copy_images(tmp_path / "images"), tmp_path / "output", max_train_steps=1, deepspeed=True)
    done = run_command(argv)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning: --deepspeed does nothing: the trained parameters are few" in done.stderr
    assert (tmp_path / "output" / "run.safetensors").exists()


def test_the_time_limit_reaches_the_group_of_processes():
    program = """
import torch
from library.training.devices import make_accelerator
make_accelerator("no", timeout_minutes=7)
group = torch.distributed.distributed_c10d._get_default_group()
print(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())
"""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    assert done.stdout.split() == ["420.0"], done.stderr[-2000:]
