"""Options of other training programs that users' configuration files contain: data for `library.cli`.

An option that a script declares itself is that option; these tables apply to the scripts that do not declare it.
"""

from __future__ import annotations

from library.cli.foreign_options import ForeignOptions

# keys that front ends and notebooks write for their own use
_FRONT_ENDS = (
    "epoch",  # graphical front end: it computes max_train_steps or max_train_epochs from this
    "noise_offset_type",  # graphical front end: which of its panels is shown; it writes only that panel's values
    "lowvram",  # graphical front end: a check box without a flag
    "sdxl",  # graphical front end: which script it starts
    "model_train_type",  # graphical front end: which script it starts
    "gpu_ids",  # graphical front end: what it passes to the launcher
    "config_file",  # a dump of all arguments
    "output_config",  # a dump of all arguments
)  # fmt: skip

# options of the other scripts of this project: configuration files are shared between scripts
_TRAIN_NETWORK = (
    "base_weights", "base_weights_multiplier", "cpu_offload_checkpointing", "dim_from_weights", "network_alpha",
    "network_args", "network_dim", "network_dropout", "network_module", "network_train_text_encoder_only",
    "network_train_unet_only", "network_weights", "scale_weight_norms", "text_encoder_lr", "unet_lr",
)  # fmt: skip
_TRAIN_DB = ("learning_rate_te", "no_token_padding", "stop_text_encoder_training", "use_safetensors")
_FINE_TUNE = ("diffusers_xformers", "learning_rate_te", "train_text_encoder", "use_safetensors")
_TRAIN_TEXTUAL_INVERSION = (
    "init_word", "num_vectors_per_token", "token_string", "use_object_template", "use_style_template", "weights", "xti",
)  # fmt: skip
_CONTROL_NETWORKS = ("cond_emb_dim", "controlnet_model_name_or_path")

# options of the scripts for other model families
_SDXL = ("fused_optimizer_groups",)
_FLUX = (
    "apply_t5_attn_mask", "blocks_to_swap", "blockwise_fused_optimizers", "discrete_flow_shift",
    "double_blocks_to_swap", "guidance_scale", "mem_eff_save", "model_prediction_type", "model_type", "sigmoid_scale",
    "single_blocks_to_swap", "split_mode", "t5xxl_max_token_length", "timestep_sampling", "train_blocks",
    "train_t5xxl",
)  # fmt: skip
_STABLE_DIFFUSION_3 = (
    "apply_lg_attn_mask", "clip_g_dropout_rate", "clip_l_dropout_rate", "enable_scaled_pos_embed", "learning_rate_te3",
    "logit_mean", "logit_std", "mode_scale", "num_last_block_to_freeze", "pos_emb_random_crop_rate", "save_clip",
    "save_t5xxl", "t5_dropout_rate", "t5xxl_device", "t5xxl_dtype", "text_encoder_batch_size", "training_shift",
    "use_t5xxl_cache_only", "weighting_scheme",
)  # fmt: skip
_LUMINA = ("gemma2_max_token_length", "sample_batch_size", "system_prompt", "use_flash_attn", "use_sage_attn")

# files of the components of models of other families
_PARTS = {
    "ae": ("FLUX", "Lumina"),
    "clip_l": ("FLUX", "Stable Diffusion 3"),
    "clip_g": ("Stable Diffusion 3",),
    "t5xxl": ("FLUX", "Stable Diffusion 3"),
    "gemma2": ("Lumina",),
}

# options under other names in front ends and notebooks
_RENAMED = {"lr_restart_cycles": "lr_scheduler_num_cycles"}

# arguments of the network that the front end writes as options
_NETWORK_ARGUMENTS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")

_MODEL, _DATA = ("pretrained_model_name_or_path",), ("train_data_dir",)
_TEXT_ENCODER_RATE = ("learning_rate_te", "text_encoder_lr")

# other common names: those in Diffusers' and PEFT's examples, and short ones
_MEANINGS = {
    "alpha": ("network_alpha",),
    "base_model": _MODEL,
    "batch_size": ("train_batch_size",),
    "checkpoint": _MODEL,
    "ckpt": _MODEL,
    "conv_alpha": ("network_args",),
    "conv_dim": ("network_args",),
    "data_dir": _DATA,
    "datasets": ("dataset_config",),
    "dim": ("network_dim",),
    "epochs": ("max_train_epochs",),
    "fp16": ("mixed_precision",),
    "bf16": ("mixed_precision",),
    "image_dir": _DATA,
    "initializer_token": ("init_word",),
    "log_dir": ("logging_dir",),
    "lora_alpha": ("network_alpha",),
    "lora_dim": ("network_dim",),
    "lora_rank": ("network_dim",),
    "lr": ("learning_rate",),
    "max_epochs": ("max_train_epochs",),
    "max_steps": ("max_train_steps",),
    "model": _MODEL,
    "model_name_or_path": _MODEL,
    "num_epochs": ("max_train_epochs",),
    "num_train_epochs": ("max_train_epochs",),
    "num_vectors": ("num_vectors_per_token",),
    "num_workers": ("max_data_loader_n_workers",),
    "optimizer": ("optimizer_type",),
    "placeholder_token": ("token_string",),
    "prompts": ("sample_prompts",),
    "rank": ("network_dim",),
    "reg_dir": ("reg_data_dir",),
    "report_to": ("log_with",),
    "resume_from_checkpoint": ("resume",),
    "scheduler": ("lr_scheduler",),
    "steps": ("max_train_steps",),
    "te_lr": _TEXT_ENCODER_RATE,
    "text_encoder_lr": _TEXT_ENCODER_RATE,
    "unet_lr": ("learning_rate",),
    "learning_rate_unet": ("unet_lr", "learning_rate"),
    "warmup_steps": ("lr_warmup_steps",),
}

FOREIGN_OPTIONS = ForeignOptions(
    unused=frozenset({
        *_FRONT_ENDS, *_TRAIN_NETWORK, *_TRAIN_DB, *_FINE_TUNE, *_TRAIN_TEXTUAL_INVERSION, *_CONTROL_NETWORKS,
        *_SDXL, *_FLUX, *_STABLE_DIFFUSION_3, *_LUMINA,
    }),
    renamed=_RENAMED,
    arguments=dict.fromkeys(_NETWORK_ARGUMENTS, "network_args"),
    families=_PARTS,
    meanings=_MEANINGS,
)  # fmt: skip
