"""Writes compatibility.md from the declarations and from reference_flags.json: python docs/make_compatibility.py

reference_flags.json: the flags of the scripts that this program stands in for, with type, default and choices.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import fine_tune  # noqa: E402
import train_db  # noqa: E402
import train_network  # noqa: E402
import train_textual_inversion  # noqa: E402
from library.cli.options import OptionField, option_fields  # noqa: E402
from library.cli.parser import ConfigFileOptions  # noqa: E402
from library.training.foreign_options import FOREIGN_OPTIONS  # noqa: E402

SCRIPTS = {
    "train_network": train_network.OPTION_GROUPS,
    "train_db": train_db.OPTION_GROUPS,
    "fine_tune": fine_tune.OPTION_GROUPS,
    "train_textual_inversion": train_textual_inversion.OPTION_GROUPS,
}
_LETTERS = {"train_network": "N", "train_db": "D", "fine_tune": "F", "train_textual_inversion": "T"}

# why a default or choices differ, and what an equal declaration does not show
WHY = {
    "caption_extention": "the same option as `--caption_extension`, with its default",
    "caption_extension": "the dot may be left out",
    "bucket_reso_steps": "below 8: 8 is used, with a warning, since latents have an eighth of the size",
    "conditioning_data_dir": "holds masks in folders of the same names as those of `--train_data_dir`",
    "deepspeed": "carried out by PyTorch's FSDP2; for whole models: a LoRA or an embedding is too small to be sharded",
    "dynamo_backend": "`no` compiles nothing; `tensorrt` is accepted beside the spelling `tensort`",
    "fp8_base": "whole models: does nothing, the U-Net is trained",
    "fp8_base_unet": "the same as `--fp8_base`, which keeps the U-Net alone in 8 bits",
    "fused_backward_pass": "AdamW too, not AdaFactor alone",
    "huggingface_repo_type": "a model repository unless another kind is named",
    "huggingface_repo_visibility": "private unless `public` is given",
    "huggingface_token": "written nowhere: neither to states nor to configuration files",
    "in_json": "train_db: accepted by the parser, and refused with a hint at fine_tune.py",
    "initial_step": "begins at that very step with `--skip_until_initial_step`",
    "log_with": "`wandb` and `all` are accepted; until they are implemented, curves go to TensorBoard",
    "lr_scheduler": "the table's names, any class of torch.optim.lr_scheduler, or module.Class",
    "max_token_length": "75 is what is read where the option is not given; it may be given too",
    "network_args": "arguments that a network does not know are errors",
    "network_dim": "4 is the rank where the option is not given",
    "network_module": "`networks.lora` where the option is not given",
    "num_vectors_per_token": "as many as `--weights` holds, else 1",
    "offload_optimizer_device": "`nvme` offloads to CPU memory",
    "offload_param_device": "`nvme` offloads to CPU memory; the same as `--offload_optimizer_device`",
    "output_dir": "required",
    "output_name": "a run whose name has left files in the folder is refused; `--overwrite` or `--resume` go on",
    "resize_interpolation": "`box` and `jpeg_scaled` too",
    "resume": "`auto` takes the newest state in `--output_dir`; goes on within an epoch, to the bit",
    "save_precision": "`float` where the option is not given",
    "train_data_dir": "an empty folder in it is left out with a warning; no images at all are an error",
    "v2": "found out from the model; a contradiction is an error",
    "v_parameterization": "on a model that says that it predicts noise: trained and saved as v, with a warning",
    "validation_seed": "0 where the option is not given; `--seed` has no part in it",
    "vae_batch_size": "0 is 1",
    "zero_stage": "2 where the option is not given; 0 to 3",
}


def page() -> str:
    """The Markdown page."""
    reference = json.loads((DOCS / "reference_flags.json").read_text(encoding="utf-8"))
    by_flag: dict[str, dict[str, Any]] = {}
    for script in SCRIPTS:
        for flag, declared in {**reference["every script"], **reference[script]}.items():
            by_flag.setdefault(flag, {})[script] = declared
    rows = [_row(flag, declared) for flag, declared in sorted(by_flag.items())]
    return "\n".join([*_HEAD, *rows, "", *_rest(), ""])


_HEAD = (
    "# Flags of the reference scripts, and what they do here",
    "",
    "Made by `docs/make_compatibility.py` from the declarations in the code. N: train_network.py, D: train_db.py,",
    "F: fine_tune.py, T: train_textual_inversion.py (with `--xti`, XTI). The scripts that this program stands in for",
    "declare the flags; every one is accepted here. *same*: it does here what it does there. *without effect*:",
    "accepted, and a warning names it. *refused*: one error line, since the run would give something else than was",
    "asked for.",
    "A flag of one script is often accepted by the others here too; the pages of options say which there are.",
    "",
    "| flag | scripts | here | what differs |",
    "|---|---|---|---|",
)


def _row(flag: str, declared: dict[str, Any]) -> str:
    letters = "".join(_LETTERS[script] for script in declared)
    states = {script: state_of(script, flag, each) for script, each in declared.items()}
    state = max(states.values(), key=list(_ORDER).index)
    return f"| `{flag}` | {letters} | {state} | {_difference(flag, declared, states)} |"


_ORDER = ("same", "different", "without effect", "refused", "missing")


def option_of(script: str, name: str) -> OptionField | None:
    """The option that a script declares under a name or an alias."""
    fields = (field for owner in (*SCRIPTS[script], ConfigFileOptions) for field in option_fields(owner))
    return next((field for field in fields if name in field.spellings), None)


def state_of(script: str, flag: str, declared: dict[str, Any]) -> str:
    """One of `_ORDER`, of a reference flag in one of this program's scripts."""
    name = flag.removeprefix("--")
    field = option_of(script, name)
    if field is None:
        return "missing"
    if field.spec.refused is not None:
        return "refused"
    if field.spec.inert is not None:
        return "without effect"
    return "different" if name in WHY or differences(field, declared) else "same"


def differences(field: OptionField, declared: dict[str, Any]) -> list[str]:
    """How the declaration of an option differs from that of the reference flag, in what a user can see."""
    found = []
    if (declared.get("default") or None) != (field.default or None):
        found.append(f"default `{field.default}` instead of `{declared.get('default')}`")
    choices = [choice for choice in declared.get("choices", ()) if choice is not None]
    if field.spec.parse is None and not set(map(str, choices)) <= set(field.spec.choices or map(str, choices)):
        found.append("other choices")
    if (field.kind is bool) != bool(declared.get("switch")):
        found.append("another type")
    return found


def _difference(flag: str, declared: dict[str, Any], states: dict[str, str]) -> str:
    name = flag.removeprefix("--")
    fields = [option_of(script, name) for script in declared]
    for field in fields:
        if field is not None and field.spec.refused is not None:
            return f"{field.spec.refused[0]}; {field.spec.refused[1]}"
        if field is not None and field.spec.inert is not None:
            return field.spec.inert
    return WHY.get(name, "")


def _rest() -> list[str]:
    unused = ", ".join(f"`{name}`" for name in sorted(FOREIGN_OPTIONS.unused))
    parts = ", ".join(f"`{name}` ({' or '.join(families)})" for name, families in FOREIGN_OPTIONS.families.items())
    renamed = ", ".join(f"`{name}` (as `--{option}`)" for name, option in FOREIGN_OPTIONS.renamed.items())
    arguments = ", ".join(f"`{name}` (in `--{option}`)" for name, option in FOREIGN_OPTIONS.arguments.items())
    return [
        "## Keys of a configuration file that are no flags of these scripts",
        "",
        "In a `--config_file`, keys of front ends and of the scripts for other model families are known. Those whose",
        f"meaning is plain are carried out: {renamed}, {arguments}.",
        "",
        "One warning names the others, where the script has no option of that name:",
        f"{unused}.",
        "",
        f"A file that names a part of a model of another family is for that family, and one line says so: {parts}.",
        "",
        "Any other key is an error, with the option that was probably meant.",
    ]


if __name__ == "__main__":
    (DOCS / "compatibility.md").write_text(page(), encoding="utf-8")
