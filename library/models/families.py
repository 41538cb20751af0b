"""The known model families, and problems of the paths that models are given by. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from library.cli.checks import Findings
from library.cli.documents import no_such_path
from library.cli.errors import UserError, plural
from library.data.records import LatentFormat
from library.models.options import ModelOptions, PromptOptions
from library.models.reading.detection import DetectedModel
from library.models.sdxl import detection as sdxl
from library.models.sdxl.layout import SDXL
from library.models.stable_diffusion import detection as stable_diffusion
from library.models.stable_diffusion.layout import SD_1
from library.models.weights.base_signs import BaseSigns, base_signs
from library.models.weights.model_files import ModelFolder, TensorFile, small_files
from library.models.weights.model_kinds import OtherKind, has_vae, kind_of_folder, kind_of_keys
from library.models.weights.path_checks import FLAG, VAE_FLAG, file_problems, is_hub_id, part_problems

ModelSource = ModelFolder | TensorFile


@dataclass(frozen=True)
class FamilyEntry:
    """One family.

    `parts`: the folders of a Diffusers model that hold weights. `accepts`: whether a folder or file is of it.
    `detect`: what its small files say. `check_options`: options that contradict that. `package`: has `model.load` and
    `inspection.inspect`, and is imported last. `latents`: what the data has to know.
    `has_xti`: embeddings can have vectors for each of its cross-attention layers. `made_for`: the titles of its models
    that a LoRA or an embedding can be for; none where its header shows another family, or nothing. `num_rate_blocks`:
    how many blocks `--block_lr` has learning rates for; 0 where it is not for the family.
    """

    title: str
    parts: tuple[str, ...]
    accepts: Callable[[ModelSource], bool]
    detect: Callable[[ModelSource], DetectedModel]
    check_options: Callable[[DetectedModel, ModelOptions, PromptOptions], Findings]
    package: str
    latents: LatentFormat = LatentFormat()
    has_xti: bool = False
    num_rate_blocks: int = 0
    made_for: Callable[[BaseSigns], tuple[str, ...]] = lambda signs: ()


FAMILIES = (
    FamilyEntry(
        "Stable Diffusion 1.x and 2.x",
        SD_1.parts,
        stable_diffusion.is_stable_diffusion,
        stable_diffusion.detect,
        stable_diffusion.check_options,
        "library.models.stable_diffusion",
        has_xti=True,
        made_for=stable_diffusion.made_for,
    ),
    FamilyEntry(
        "Stable Diffusion XL",
        SDXL.parts,
        sdxl.is_stable_diffusion_xl,
        sdxl.detect,
        sdxl.check_options,
        "library.models.sdxl",
        LatentFormat("_sdxl.npz", granularity=32, usual_resolution=(1024, 1024)),
        num_rate_blocks=23,
        made_for=sdxl.made_for,
    ),
)


def family_named(package: str) -> FamilyEntry:
    """The family in a package of `library.models`: "sdxl"."""
    return next(family for family in FAMILIES if family.package == f"library.models.{package}")


def family_of(source: ModelSource) -> FamilyEntry | None:
    """The family of a folder or file, where it is known."""
    return next((family for family in FAMILIES if family.accepts(source)), None)


def trained_titles() -> str:
    """The families that are trained, for messages."""
    return ", ".join(family.title for family in FAMILIES)


def block_rates_problem(family: FamilyEntry, num_rates: int) -> UserError | None:
    """The error for `--block_lr` with so many learning rates; None where they are those of the family's blocks."""
    if num_rates == family.num_rate_blocks:
        return None
    if family.num_rate_blocks:
        counted = f"{family.title} has {family.num_rate_blocks} blocks"
        return UserError(f"--block_lr has {plural(num_rates, 'learning rate')}, {counted}", "give one for each block")
    titles = ", ".join(each.title for each in FAMILIES if each.num_rate_blocks)
    return UserError(f"--block_lr is for {titles}; this model is {family.title}", "leave it out")


def other_kind(source: ModelSource) -> OtherKind | None:
    """What a folder or file is where it is of no known family; None where it is, or where it shows nothing."""
    if family_of(source) is not None:
        return None
    return kind_of_folder(source.path) if isinstance(source, ModelFolder) else kind_of_keys(source.tensors)


def other_family(path: str) -> str | None:
    """The name of the model family at `path` where its small files show that it is one that is not trained.

    None for families that are, for what is not a whole model, and where headers do not show it: names on the Hub,
    damaged files.
    """
    source = small_files(Path(path))
    if source is None:
        return None
    kind = other_kind(source)
    return None if kind is None else kind.family


def made_for(file: TensorFile) -> tuple[str, ...]:
    """The titles of the models that a LoRA or an embedding can be for; none where its header shows no known family."""
    signs = base_signs(file)
    return next((found for family in FAMILIES if (found := family.made_for(signs))), ())


def base_problem(flag: str, path: str, title: str, model: str) -> UserError | None:
    """The error for a LoRA or an embedding at `path` whose header shows that it is not for the kind of model `title`.

    `model`: the model's path. None for what fits, and for what does not show it: that is found when it is loaded.
    """
    source = small_files(Path(path)) if Path(path).is_file() else None
    if source is None or isinstance(source, ModelFolder):
        return None
    titles = made_for(source)
    if not titles or title in titles:
        return None
    others = " or ".join(titles)
    return UserError(
        f"{flag} {path} was made for {others}, but {model} is {title}",
        f"give a file made for {title}, or a model that is {others}",
    )


def model_problems(options: ModelOptions) -> list[UserError]:
    """Problems of the paths of the model and of `--vae`.

    Checks names, sizes and the headers of .safetensors files. A missing option is reported by the parser; what may be
    a name on the Hub is checked when it is loaded.
    """
    problems = []
    model, vae = options.pretrained_model_name_or_path, options.vae
    if model is not None:
        problems += _path_problems(FLAG, model, partial(_folder_problems, needs_vae=vae is None), _kind_problem)
    if vae is not None:
        problems += _path_problems(VAE_FLAG, vae, lambda folder: [], _vae_problem)
    return problems


def encoder_problems(path: str, flag: str) -> list[UserError]:
    """Problems of the path, given with `flag`, of what encodes images: a model or a VAE alone."""
    return _path_problems(
        flag, path, lambda folder: list(filter(None, [_encoder_problem(flag, folder)])), _encoder_problem
    )


def _path_problems(
    flag: str,
    path: str,
    folder_problems: Callable[[Path], list[UserError]],
    kind_problem: Callable[[str, Path], UserError | None],
) -> list[UserError]:
    if Path(path).is_dir():
        return folder_problems(Path(path))
    if Path(path).is_file():
        problems = file_problems(flag, Path(path))
        problem = None if problems else kind_problem(flag, Path(path))
        return problems if problem is None else [problem]
    if is_hub_id(path):
        return []
    shown, hint = no_such_path(path, "check the path")
    return [UserError(f"{flag} {shown}: there is no such file or folder", hint)]


def _kind_problem(flag: str, path: Path) -> UserError | None:
    source = small_files(path)
    kind = None if source is None else other_kind(source)
    hint = f"this program supports {trained_titles()}: give such a model"
    return None if kind is None else UserError(f"{flag} {path} is {kind.phrase}", hint)


def _vae_problem(flag: str, path: Path) -> UserError | None:
    source = small_files(path)
    if source is None or isinstance(source, ModelFolder) or has_vae(source.tensors):
        return None
    return UserError(f"{flag} {path} holds no VAE", "give a VAE, or a model with one")


def _encoder_problem(flag: str, path: Path) -> UserError | None:
    source = small_files(path)
    kind = None if source is None else other_kind(source)
    if kind is not None and kind.family is not None:
        return _kind_problem(flag, path)
    return None if path.is_dir() else _vae_problem(flag, path)


def _folder_problems(folder: Path, needs_vae: bool) -> list[UserError]:
    problem = _kind_problem(FLAG, folder)
    if problem is not None:
        return [problem]
    family = family_of(ModelFolder(folder))
    if family is None and not (folder / "model_index.json").is_file() and not (folder / "unet").is_dir():
        return [
            UserError(
                f"{FLAG} {folder}: not a Diffusers model, it has neither model_index.json nor unet/",
                "give the folder that holds model_index.json, or a single .safetensors or .ckpt file",
            )
        ]
    family = family or FAMILIES[0]
    return [
        problem
        for part in family.parts
        if part != "vae" or needs_vae
        for problem in part_problems(folder, part, family.title)
    ]
