"""The tools on LoRA weight files as stand-alone scripts. What they do is imported when it is done."""

from __future__ import annotations

from library.cli.jobs.job import Job
from library.cli.jobs.outcome import Outcome
from library.cli.parser import Options
from networks.weight_tools.options.conversion import ConvertOptions
from networks.weight_tools.options.dylora import DyLoRAOptions
from networks.weight_tools.options.extraction import ExtractOptions
from networks.weight_tools.options.files import CheckOptions, ResizeOptions
from networks.weight_tools.options.interrogation import InterrogateOptions
from networks.weight_tools.options.merging import MergeOptions, SVDMergeOptions


def _check(options: Options, outcome: Outcome) -> None:
    from networks.weight_tools.statistics import check_file

    check_file(options[CheckOptions], outcome)


def _resize(options: Options, outcome: Outcome) -> None:
    from networks.weight_tools.resizing import resize_file

    resize_file(options[ResizeOptions], outcome)


def _convert(options: Options, outcome: Outcome) -> None:
    from networks.weight_tools.conversion import convert_file

    convert_file(options[ConvertOptions], outcome)


def _merge(options: Options, outcome: Outcome) -> None:
    wanted = options[MergeOptions]
    if wanted.sd_model is None:
        from networks.weight_tools.merging.adapters import merge_files

        merge_files(wanted, outcome)
    else:
        from networks.weight_tools.merging.into_model import merge_into_model

        merge_into_model(wanted, outcome)


def _svd_merge(options: Options, outcome: Outcome) -> None:
    from networks.weight_tools.merging.svd import svd_merge_files

    svd_merge_files(options[SVDMergeOptions], outcome)


def _extract(options: Options, outcome: Outcome) -> None:
    from networks.weight_tools.extraction import extract

    extract(options[ExtractOptions], outcome)


def _interrogate(options: Options, outcome: Outcome) -> None:
    from networks.weight_tools.interrogation import interrogate

    interrogate(options[InterrogateOptions], outcome)


def _extract_ranks(options: Options, outcome: Outcome) -> None:
    from networks.weight_tools.dylora_extraction import extract_ranks

    extract_ranks(options[DyLoRAOptions], outcome)


CHECK = Job(
    "check_lora_weights.py",
    "Shows the statistics of the weights in a LoRA file, and names layers with NaN or infinite values and those without"
    " effect.",
    (CheckOptions,),
    _check,
    done="checked",
    first_process_only=True,
)
RESIZE = Job(
    "resize_lora.py",
    "Resizes a LoRA to another rank, by singular value decomposition of each layer's update.",
    (ResizeOptions,),
    _resize,
    done="layers resized",
    first_process_only=True,
)
MERGE = Job(
    "merge_lora.py",
    "Merges LoRAs into the weights of a model, or several LoRAs into one.",
    (MergeOptions,),
    _merge,
    done="merged",
    first_process_only=True,
)
EXTRACT = Job(
    "extract_lora_from_models.py",
    "Extracts a LoRA from a fine-tuned model and the model that it was tuned from.",
    (ExtractOptions,),
    _extract,
    done="layers extracted",
    first_process_only=True,
)
SVD_MERGE = Job(
    "svd_merge_lora.py",
    "Merges several LoRAs into one of a given rank, by singular value decomposition of the sum of their updates.",
    (SVDMergeOptions,),
    _svd_merge,
    done="layers merged",
    first_process_only=True,
)
CONVERT = Job(
    "convert_lora.py",
    "Converts a LoRA or DoRA file from the names that web UIs read to those of Diffusers and PEFT, or back.",
    (ConvertOptions,),
    _convert,
    done="layers converted",
    first_process_only=True,
)
INTERROGATE = Job(
    "lora_interrogator.py",
    "Shows which tokens the text encoder of a LoRA reacts to, such as its trigger word.",
    (InterrogateOptions,),
    _interrogate,
    done="tokens looked at",
    first_process_only=True,
)
DYLORA = Job(
    "extract_lora_from_dylora.py",
    "Makes a LoRA of each rank of a DyLoRA.",
    (DyLoRAOptions,),
    _extract_ranks,
    done="LoRAs extracted",
    first_process_only=True,
)
