"""A file of `--output_config` repeats the run of the command line that wrote it."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.end_to_end.runs import arguments, assert_same, run_command, train

OPTIONS = {
    "max_train_steps": 3, "network_dim": 4, "network_args": "conv_dim=2", "caption_dropout_rate": 0.1,
    "shuffle_caption": True, "noise_offset": 0.05, "min_snr_gamma": 5, "lr_scheduler": "cosine",
    "text_encoder_lr": 5e-4, "huggingface_token": "hf_secret", "training_comment": "C:\\users \"quoted\"\n",
    "logging_dir": None,
}  # fmt: skip


@pytest.mark.parametrize("seed", [7, None], ids=["given", "drawn"])
def test_the_same_run_from_the_file(seed, data_dir, tmp_path):
    config, output = tmp_path / "config", tmp_path / "out"
    (output).mkdir()
    (output / "run.safetensors").write_bytes(b"of an earlier run, which is not looked at")
    argv = arguments(data_dir, output, **OPTIONS, seed=seed)
    done = run_command([*argv, "--config_file", str(config), "--output_config"])
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "config.toml").read_text()
    assert "hf_secret" not in written and "seed = " in written and "train_batch_size" in written
    assert "max_grad_norm" not in written  # at its default
    (output / "run.safetensors").unlink()
    runs = []
    for name in ("first", "second"):
        done = run_command(["--config_file", str(config), "--output_dir", str(tmp_path / name)])
        assert done.returncode == 0, done.stderr
        runs.append(load_file(tmp_path / name / "run.safetensors"))
    assert_same(*runs)
    if seed is not None:
        assert_same(runs[0], train(data_dir, tmp_path / "direct", **OPTIONS, seed=seed))
    done = run_command([*argv, "--config_file", str(config), "--output_config"])
    assert done.returncode == 2 and "exists already" in done.stderr
