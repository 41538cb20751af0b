"""If these fail, options of several processes are lost on the way, or a run begins that cannot be had."""

import json
import os
import subprocess
import sys

import pytest

from library.cli.errors import UserError, UserErrors
from library.training.distributed.options import ProcessOptions
from library.training.distributed.sharding_config import (
    OPTIMIZERS,
    ShardingConfig,
    process_findings,
    sharding_config,
    sharding_findings,
)
from library.training.optimization.options import OptimizerOptions
from library.training.options import TrainingOptions
from tests.end_to_end.runs import ROOT, arguments, copy_images, train

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


def stage(number, offloads=False):
    """What carries out a stage of ZeRO: 1 and 2 keep gathered weights between forward and backward pass."""
    return ShardingConfig(reshard_after_forward=number == 3, offloads=offloads, units="classes", zero_stage=number)


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
        ({"deepspeed": True}, {}, stage(2)),
        ({"deepspeed": True, "zero_stage": 0}, {}, None),
        ({"deepspeed": True, "zero_stage": 0, "offload_optimizer_device": "cpu"}, {}, None),
        ({"deepspeed": True, "zero_stage": 1, "offload_optimizer_device": "cpu"}, {}, stage(1, True)),
        ({"deepspeed": True, "offload_param_device": "cpu"}, {}, stage(2, True)),
        ({"deepspeed": True, "zero_stage": 3, "offload_param_device": "nvme"}, {}, stage(3, True)),
        (
            {},
            {
                **DEEPSPEED,
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
                "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
            },
            stage(3, True),
        ),
        # an option wins over accelerate's configuration
        ({"zero_stage": 1}, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, stage(1)),
        ({}, FSDP2, ShardingConfig()),
        ({}, {**FSDP2, "FSDP_RESHARD_AFTER_FORWARD": "false"}, ShardingConfig(reshard_after_forward=False)),
        ({}, {**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}, ShardingConfig(offloads=True)),
        (
            {},
            {
                **FSDP2,
                "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                "FSDP_TRANSFORMER_CLS_TO_WRAP": "ResnetBlock2D, CLIPEncoderLayer",
            },
            ShardingConfig(units="classes", unit_classes=("ResnetBlock2D", "CLIPEncoderLayer")),
        ),
        (
            {},
            {**FSDP2, "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"},
            ShardingConfig(units="size", unit_size=100_000_000),
        ),
        ({}, FSDP1, ShardingConfig()),
        ({}, {**FSDP1, "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"}, ShardingConfig(reshard_after_forward=False)),
        ({}, {**FSDP1, "FSDP_SHARDING_STRATEGY": "2"}, ShardingConfig(reshard_after_forward=False)),
        ({}, {**FSDP1, "FSDP_SHARDING_STRATEGY": "NO_SHARD"}, None),
        ({}, {**FSDP1, "FSDP_RESHARD_AFTER_FORWARD": "SHARD_GRAD_OP"}, ShardingConfig(reshard_after_forward=False)),
    ],
)
def test_options_and_accelerates_variables_say_what_is_shared_out(options, variables, plan):
    found = sharding_config(ProcessOptions(**options), variables)
    if isinstance(found, ShardingConfig) and found.units != "size":
        assert found == ShardingConfig(**{**vars(plan), "unit_size": found.unit_size})
    else:
        assert found == plan


@pytest.mark.parametrize(
    ("options", "variables", "refusal"),
    [
        ({}, {**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "tape"}, "--offload_param_device tape is not"),
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


def test_deepspeeds_own_file_is_read_where_accelerates_configuration_names_it(tmp_path):
    path = tmp_path / "zero.json"
    variables = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path), "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}
    section = {"stage": 3, "offload_param": {"device": "cpu"}, "overlap_comm": False, "reduce_bucket_size": "auto"}
    unused = {"train_batch_size": "auto", "bf16": {"enabled": "auto"}, "flops_profiler": {}}
    path.write_text(json.dumps({"zero_optimization": section, **unused}))
    assert sharding_config(ProcessOptions(), variables) == stage(3, True)
    (line,) = process_findings(ProcessOptions(), variables, TrainingOptions())
    assert line.endswith("zero.json: no effect of flops_profiler, overlap_comm")
    path.write_text(json.dumps({"zero_optimization": {"stage": "auto"}}))
    assert sharding_config(ProcessOptions(), variables) == stage(1)
    path.write_text(json.dumps({"zero_optimization": section, "optimizer": {"type": "Adam"}, "gradient_clipping": 1}))
    lines = refusals(ProcessOptions(), variables)
    assert "sets optimizer" in lines[0] and "--optimizer_type" in lines[0] and "sets gradient_clipping" in lines[1]
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
        ("AdamW", {"mixed_precision": "fp16", "full_fp16": True}, False, "with --full_fp16"),
        ("AdamW", {"fused_backward_pass": True}, False, "with --fused_backward_pass"),
        ("AdamW", {}, True, "with --torch_compile"),
    ],
)
@pytest.mark.parametrize("plan", [stage(2), ShardingConfig()])
def test_options_that_need_all_of_it_in_one_process_are_refused(plan, name, training, compiles, refusal):
    optimizer, training = OptimizerOptions(optimizer_type=name), TrainingOptions(**training)
    (problem,) = sharding_findings(plan, training, optimizer, compiles)
    assert problem.message.startswith(f"{plan.flag} {refusal}") and problem.hint


@pytest.mark.parametrize("plan", [stage(3), ShardingConfig()])
def test_kernels_that_know_no_shards_are_refused(plan):
    """PyTorch has no sharding strategy for SGD's fused kernel; Lion's of Triton takes plain tensors alone."""
    for name, argument in (
        ("SGDNesterov", "fused=True"),
        ("torch.optim.SGD", "fused=True"),
        ("Lion", "use_triton=True"),
    ):
        optimizer = OptimizerOptions(optimizer_type=name, optimizer_args=(argument,))
        (problem,) = sharding_findings(plan, TrainingOptions(), optimizer, False)
        assert f"--optimizer_args {argument}" in problem.message
    optimizer = OptimizerOptions(optimizer_type="AdamW", optimizer_args=("fused=True",))
    assert list(sharding_findings(plan, TrainingOptions(), optimizer, False)) == []


@pytest.mark.parametrize("plan", [stage(3), ShardingConfig()])
def test_elementwise_optimizers_and_all_precisions_of_float32_weights_are_taken(plan):
    for name in (*OPTIMIZERS, "adamw", "torch.optim.SGD"):
        assert list(sharding_findings(plan, TrainingOptions(), OptimizerOptions(optimizer_type=name), False)) == []
    for training in ({"mixed_precision": "fp16"}, {"mixed_precision": "bf16", "full_bf16": True}):
        assert list(sharding_findings(plan, TrainingOptions(**training), OptimizerOptions(), False)) == []


@pytest.mark.parametrize(
    ("options", "variables", "line"),
    [
        ({"zero_stage": 2, "offload_param_device": "cpu"}, {}, "--zero_stage, --offload_param_device without --deepsp"),
        ({"deepspeed": True, "offload_param_device": "nvme"}, {}, "--offload_param_device nvme: offloading is to CPU"),
        (
            {"deepspeed": True, "zero_stage": 0, "offload_param_device": "cpu"},
            {},
            "--offload_param_device cpu does nothing with --zero_stage 0",
        ),
        ({}, {**DEEPSPEED, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--gradient_accumulation_steps 1 is used"),
        ({}, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "--gradient_accumulation_steps 1 is used"),
        ({}, {**DEEPSPEED, "ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "--max_grad_norm 1 is used"),
        ({}, {**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use --gradient_checkpointing"),
    ],
)
def test_what_does_nothing_is_said(options, variables, line):
    (said,) = process_findings(ProcessOptions(**options), variables, TrainingOptions())
    assert line in said


def test_what_agrees_is_not_said():
    variables = {**DEEPSPEED, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}
    assert list(process_findings(ProcessOptions(), variables, TrainingOptions())) == []
    assert list(process_findings(ProcessOptions(), FSDP2, TrainingOptions())) == []


@pytest.mark.parametrize(
    ("script", "options", "variables", "refusal"),
    [
        ("train_db.py", {"stop_text_encoder_training": 3}, FSDP2, "error: FSDP with --stop_text_encoder_training 3"),
        ("train_network.py", {}, FSDP2, "error: FSDP would shard the weights"),
    ],
)
def test_the_refusal_is_all_that_happens(tmp_path, script, options, variables, refusal):
    data = copy_images(tmp_path / "images")
    argv = arguments(data, tmp_path / "output", **options)
    env = {**os.environ, **variables}
    command = [sys.executable, script, *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith(refusal) and len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "output").exists()


def test_a_network_is_small_and_trains_as_ever(tmp_path, caplog):
    data = copy_images(tmp_path / "images")
    assert train(data, tmp_path / "output", max_train_steps=1, logging_dir=None, deepspeed=True)
    assert "--deepspeed does nothing: the trained parameters are few" in caplog.text
