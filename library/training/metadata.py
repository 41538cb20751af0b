"""The metadata of saved files: what other programs show of how a file was trained.

Keys and the form of their values are those that image programs know: all values are texts, `ss_*` the training,
`modelspec.*` the Stability AI model specification 1.0.0.
"""

from __future__ import annotations

import json
import secrets
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from library.cli.file_hashes import file_sha256, model_hash
from library.cli.parser import Options
from library.data.options import CachingOptions, DatasetOptions
from library.data.plan import PlannedDataset, TrainingData
from library.diffusion.options import NoiseOptions
from library.models.family import ModelFamily
from library.models.options import ModelOptions
from library.training.lr_schedules import warmup_steps
from library.training.method import TrainingMethod
from library.training.options import OptimizerOptions, OutputOptions, TrainingOptions
from library.training.train_plan import Position, TrainPlan

# what image programs need to load a file; all that is left with --no_metadata
MINIMUM = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)


class Metadata:
    """The entries of one run; `at` adds those that change as it goes."""

    def __init__(
        self,
        options: Options,
        data: TrainingData,
        family: ModelFamily,
        method: TrainingMethod,
        plan: TrainPlan,
        optimizer: torch.optim.Optimizer,
    ):
        self._options, self._data, self._family, self._method = options, data, family, method
        self._plan, self._optimizer = plan, optimizer
        self._started_at = time.time()

    @cached_property
    def _fixed(self) -> dict[str, str]:
        # made when the first file is saved: it hashes the whole model
        options = self._options
        return {
            **_model_entries(options, self._family),
            **_option_entries(options, self._plan, self._optimizer),
            **_data_entries(options, self._data),
            **_plan_entries(self._data, self._plan),
            **self._method.metadata(),
            "ss_training_started_at": str(self._started_at),
        }

    def at(self, position: Position) -> dict[str, str]:
        """The entries of a file saved at `position`."""
        entries = {
            **self._fixed,
            "ss_epoch": str(position.epoch + (position.step_in_epoch > 0)),
            "ss_steps": str(position.global_step),
            "ss_training_finished_at": str(time.time()),
        }
        if self._options[OutputOptions].no_metadata:
            entries = {key: value for key, value in entries.items() if key in MINIMUM}
        specification = _specification_entries(self._options, self._data, self._family, self._method)
        return {**entries, **specification, "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S")}


def _texts(entries: dict[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) if isinstance(value, (dict, list)) else str(value) for key, value in entries.items()}


def _model_entries(options: Options, family: ModelFamily) -> dict[str, str]:
    path = Path(options[ModelOptions].pretrained_model_name_or_path or "")
    hashes = {}
    if path.is_file() and not options[OutputOptions].no_metadata:
        hashes = {"ss_sd_model_hash": model_hash(path), "ss_new_sd_model_hash": file_sha256(path)}
    return _texts(
        {
            "ss_sd_model_name": path.name,
            **hashes,
            "ss_v2": family.version.startswith("sd_v2"),
            "ss_base_model_version": family.version,
        }
    )


def _option_entries(options: Options, plan: TrainPlan, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    training, rates, noise = options[TrainingOptions], options[OptimizerOptions], options[NoiseOptions]
    output, caching = options[OutputOptions], options[CachingOptions]
    kind = type(optimizer)
    return _texts(
        {
            "ss_session_id": secrets.randbelow(2**32),
            "ss_output_name": output.output_name,
            "ss_training_comment": output.training_comment,
            "ss_learning_rate": rates.learning_rate,
            "ss_lr_scheduler": rates.lr_scheduler,
            "ss_lr_warmup_steps": warmup_steps(rates, plan.num_steps),
            "ss_optimizer": f"{kind.__module__}.{kind.__qualname__}",
            "ss_mixed_precision": training.mixed_precision,
            "ss_gradient_checkpointing": training.gradient_checkpointing,
            "ss_gradient_accumulation_steps": training.gradient_accumulation_steps,
            "ss_max_grad_norm": training.max_grad_norm,
            "ss_max_train_steps": plan.num_steps,
            "ss_seed": plan.seed,
            "ss_cache_latents": caching.caches_latents,
            "ss_noise_offset": noise.noise_offset,
            "ss_min_snr_gamma": noise.min_snr_gamma,
            "ss_prior_loss_weight": noise.prior_loss_weight,
        }
    )


def _plan_entries(data: TrainingData, plan: TrainPlan) -> dict[str, str]:
    return _texts(
        {
            "ss_num_train_images": data.num_train_images,
            "ss_num_reg_images": data.num_reg_images,
            "ss_num_batches_per_epoch": plan.num_micro_batches,
            "ss_num_epochs": plan.num_epochs,
        }
    )


def _data_entries(options: Options, data: TrainingData) -> dict[str, str]:
    """Of folders on the command line, one value each; of a dataset TOML, `ss_datasets` with all of them."""
    dirs, reg_dirs, tags = {}, {}, {}
    for dataset in data.datasets:
        for summary in dataset.subset_summaries:
            target = reg_dirs if summary.config.is_reg else dirs
            target[summary.config.folder_name] = {
                "n_repeats": summary.config.num_repeats,
                "img_count": summary.img_count,
            }
            tags.setdefault(summary.config.folder_name, {}).update(summary.tag_frequency)
    entries: dict[str, Any] = {"ss_dataset_dirs": dirs, "ss_reg_dataset_dirs": reg_dirs, "ss_tag_frequency": tags}
    if options[DatasetOptions].dataset_config is not None:
        return _texts({**entries, "ss_datasets": [_dataset_entry(dataset) for dataset in data.datasets]})
    (dataset,) = data.datasets
    config, flags = dataset.config, options[DatasetOptions]
    return _texts(
        {
            **entries,
            "ss_resolution": config.resolution,
            "ss_batch_size_per_device": config.batch_size,
            "ss_total_batch_size": config.batch_size * options[TrainingOptions].gradient_accumulation_steps,
            "ss_enable_bucket": config.enable_bucket,
            "ss_bucket_no_upscale": config.bucket_no_upscale,
            "ss_min_bucket_reso": config.min_bucket_reso,
            "ss_max_bucket_reso": config.max_bucket_reso,
            "ss_bucket_info": _bucket_info(dataset),
            "ss_shuffle_caption": flags.shuffle_caption,
            "ss_keep_tokens": flags.keep_tokens,
            "ss_flip_aug": flags.flip_aug,
        }
    )


def _dataset_entry(dataset: PlannedDataset) -> dict[str, Any]:
    config, summaries = dataset.config, dataset.subset_summaries
    return {
        "is_dreambooth": True,
        "batch_size_per_device": config.batch_size,
        "num_train_images": dataset.num_train_images,
        "num_reg_images": dataset.num_reg_images,
        "resolution": list(config.resolution),
        "enable_bucket": config.enable_bucket,
        "min_bucket_reso": config.min_bucket_reso,
        "max_bucket_reso": config.max_bucket_reso,
        "tag_frequency": {summary.config.folder_name: summary.tag_frequency for summary in summaries},
        "bucket_info": _bucket_info(dataset),
        "subsets": [
            {
                "img_count": summary.img_count,
                "num_repeats": summary.config.num_repeats,
                "flip_aug": summary.config.flip_aug,
                "shuffle_caption": summary.config.shuffle_caption,
                "keep_tokens": summary.config.keep_tokens,
                "image_dir": summary.config.folder_name,
                "class_tokens": summary.config.class_tokens,
                "is_reg": summary.config.is_reg,
            }
            for summary in summaries
        ],
    }


def _bucket_info(dataset: PlannedDataset) -> dict[str, Any]:
    counts = dataset.bucket_counts.items()
    buckets = {str(index): {"resolution": list(size), "count": count} for index, (size, count) in enumerate(counts)}
    return {"buckets": buckets, "mean_img_ar_error": dataset.mean_aspect_error}


def _specification_entries(
    options: Options, data: TrainingData, family: ModelFamily, method: TrainingMethod
) -> dict[str, str]:
    width, height = data.datasets[0].config.resolution
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": family.architecture + method.architecture_suffix,
        "modelspec.implementation": "diffusers",
        "modelspec.title": options[OutputOptions].output_name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": "v" if family.prediction_type == "v_prediction" else "epsilon",
    }
