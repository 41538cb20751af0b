"""Options of checkpoints (saved weights and states), resuming, and uploads to the Hub."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from library.cli.errors import UserError
from library.cli.options import option
from library.training.checkpoints.saved_names import DEFAULT_NAME, windows_problem

_LONGEST_NAME = 200  # bytes of --output_name; a file's name has at most 255
REPO_ID = r"\w[\w.-]*/\w[\w.-]*"  # of the Hugging Face Hub: owner/name


@dataclass(frozen=True)
class OutputOptions:
    """Which checkpoints are saved and when, which are pruned, and where a run resumes."""

    GROUP: ClassVar[str] = "Output and saving"

    output_dir: str | None = option(help="output folder", required=True, metavar="FOLDER")
    output_name: str | None = option(
        help="file name without extension (default: last, epoch-000001, at-step00000100)", metavar="NAME"
    )
    save_precision: str = option(
        "float", help="data type of saved weights", choices=("float", "fp16", "bf16"), off=(False, "none")
    )
    overwrite: bool = option(
        False, help="overwrite files of an earlier run with this --output_name", on_resume="unimportant"
    )
    save_every_n_epochs: int | None = option(help="save a checkpoint every N epochs", minimum=1)
    save_every_n_steps: int | None = option(help="save a checkpoint every N steps", minimum=1)
    save_n_epoch_ratio: int | None = option(help="save at least N checkpoints, at regular epochs", minimum=1)
    save_last_n_epochs: int | None = option(help="keep only the last N epoch checkpoints", minimum=1)
    save_last_n_steps: int | None = option(help="keep only the step checkpoints of the last N steps", minimum=1)
    save_state: bool = option(False, help="save a state for --resume with every checkpoint and at the end")
    save_state_on_train_end: bool = option(False, help="save a state for --resume at the end")
    save_last_n_epochs_state: int | None = option(
        help="keep only the last N epoch states (default: --save_last_n_epochs)", minimum=1
    )
    save_last_n_steps_state: int | None = option(
        help="keep only the step states of the last N steps (default: --save_last_n_steps)", minimum=1
    )
    save_state_on_signal: bool = option(
        True, help="save a state for --resume when Ctrl-C, SIGTERM or an error ends the run"
    )
    resume: str | None = option(
        help="resume from this state folder; auto: from the newest state in --output_dir, if there is one",
        metavar="FOLDER",
        on_resume="unimportant",
    )
    initial_epoch: int | None = option(help="start at this epoch, counted from 1", minimum=1, on_resume="unimportant")
    initial_step: int | None = option(
        help="start after this many steps; overrides --initial_epoch", minimum=0, on_resume="unimportant"
    )
    skip_until_initial_step: bool = option(
        False,
        help="with --initial_step, start after exactly that step, not at the beginning of its epoch",
        on_resume="unimportant",
    )
    training_comment: str | None = option(help="comment in the metadata of saved files", metavar="TEXT")
    no_run_report: bool = option(
        False, help="write no page of the run, <output_name>-run.html in --output_dir", on_resume="unimportant"
    )
    no_metadata: bool = option(False, help="write only the metadata that other programs need to load a saved file")

    def check(self) -> Iterator[UserError | str]:
        if "/" in self.name or "\\" in self.name or self.name in (".", ".."):
            yield UserError(
                f"--output_name {self.output_name!r} is not a file name", hint="give the folder as --output_dir"
            )
        elif len(os.fsencode(self.name)) > _LONGEST_NAME:
            yield UserError(
                f"--output_name has {len(os.fsencode(self.name))} bytes: the names of saves add to it",
                hint=f"give a name of at most {_LONGEST_NAME} bytes",
            )
        elif sys.platform == "win32" and (problem := windows_problem(self.name)):
            yield UserError(
                f"--output_name {self.output_name!r} is no name on Windows: {problem}", hint="choose another name"
            )
        yield from self._without_effect()

    @property
    def name(self) -> str:
        """The name of the run in logs and metadata."""
        return self.output_name or DEFAULT_NAME

    def _without_effect(self) -> Iterator[str]:
        """Options that have no effect together with the others."""
        saves_epochs = self.save_every_n_epochs is not None or self.save_n_epoch_ratio is not None
        for name, what, is_saved in (
            ("save_last_n_epochs", "--save_every_n_epochs", saves_epochs),
            ("save_last_n_steps", "--save_every_n_steps", self.save_every_n_steps is not None),
        ):
            given = [f"--{each}" for each in (name, f"{name}_state") if getattr(self, each) is not None]
            if given and not is_saved:
                yield f"{' and '.join(given)} without {what}: there are no such saves to prune"
        if self.skip_until_initial_step and self.initial_step is None and self.initial_epoch is None:
            yield "--skip_until_initial_step does nothing without --initial_step; --resume starts at the saved step"


@dataclass(frozen=True)
class HubOptions:
    """Uploads to the Hugging Face Hub, and resuming from it. None of it changes the trained weights."""

    GROUP: ClassVar[str] = "Hugging Face Hub"

    huggingface_repo_id: str | None = option(
        help="repository to upload every checkpoint to; created if it does not exist", metavar="OWNER/NAME",
        on_resume="unimportant",
    )  # fmt: skip
    huggingface_repo_type: str = option(
        "model", help="type of the repository", choices=("model", "dataset", "space"), on_resume="unimportant"
    )
    huggingface_path_in_repo: str | None = option(
        help="folder of the repository to upload to (default: its root)", metavar="FOLDER", on_resume="unimportant"
    )
    huggingface_token: str | None = option(
        help="access token (default: HF_TOKEN, or the login of hf auth login); never written to a file",
        metavar="TOKEN",
        secret=True,
        on_resume="unimportant",
    )
    huggingface_repo_visibility: str = option(
        "private",
        help="visibility of a repository that is created: public, or anything else for private",
        parse=lambda value: "public" if value == "public" else "private",
        metavar="public|private",
        on_resume="unimportant",
    )
    save_state_to_huggingface: bool = option(False, help="upload states too", on_resume="unimportant")
    resume_from_huggingface: bool = option(
        False,
        help="resume from a state on the Hub: --resume OWNER/NAME/PATH, or OWNER/NAME/PATH:REVISION:KIND",
        on_resume="unimportant",
    )
    async_upload: bool = option(False, help="upload in the background during training", on_resume="unimportant")

    @property
    def folder(self) -> str:
        """The folder in the repository, "" for its root."""
        return (self.huggingface_path_in_repo or "").strip("/")

    def check(self) -> Iterator[UserError | str]:
        repo_id, folder = self.huggingface_repo_id, self.huggingface_path_in_repo
        if repo_id is not None and re.fullmatch(REPO_ID, repo_id, re.ASCII) is None:
            yield UserError(
                f"--huggingface_repo_id {repo_id} is not the name of a repository", hint="give it as OWNER/NAME"
            )
        if folder is not None and ("\\" in folder or {".", ".."} & set(folder.split("/"))):
            yield UserError(
                f"--huggingface_path_in_repo {folder} is not a folder of a repository",
                hint="separate its parts with /, without . and ..",
            )
        if self.huggingface_token is not None and re.fullmatch(r"[!-~]+", self.huggingface_token) is None:
            yield UserError(  # the Hub's library would show the token in its error
                "--huggingface_token has characters that no token has",
                hint="copy it again, or leave it out and log in with: hf auth login",
            )
        yield from self._without_effect()

    def _without_effect(self) -> Iterator[str]:
        """Options that have no effect together with the others."""
        if self.huggingface_repo_id is None:
            for name in ("save_state_to_huggingface", "async_upload", "huggingface_path_in_repo"):
                if getattr(self, name):
                    yield f"--{name} does nothing without --huggingface_repo_id OWNER/NAME"
