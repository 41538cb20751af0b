"""The Hugging Face Hub: the repository that checkpoints are uploaded to, and states that a run resumes from.

Errors are reported in one line, without the token. The Hub's own library (`huggingface_hub`) is imported
only when an option asks for the Hub.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

from library.cli.checks import Findings
from library.cli.errors import UserError
from library.cli.launcher import command_line
from library.training.checkpoints.options import REPO_ID, HubOptions, OutputOptions
from library.training.checkpoints.resuming import AUTO, FoundState, read_whole_state
from library.training.checkpoints.states import HEADER, TRAINING, WEIGHTS

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

WAITS = (2.0, 10.0)  # seconds before the second and the third attempt
_TIMEOUT_SECONDS = 60  # without an answer, or without any data transferred
_RETRIED_STATUSES = (408, 409, 412, 425, 429)  # of 4xx: the others mean that the request itself is wrong
_REASON_LENGTH = 300
_LOG_IN = "give --huggingface_token, set HF_TOKEN, or log in with: hf auth login"
_FORM = "give --resume OWNER/NAME/PATH, or OWNER/NAME/PATH:REVISION:KIND with KIND model, dataset or space"
_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}

T = TypeVar("T")


def hub_findings(hub: HubOptions, output: OutputOptions) -> Findings:
    """Errors in the upload options that show without a network, and options without effect."""
    saves_states = output.save_state or output.save_state_on_train_end
    if hub.huggingface_repo_id is not None and hub.save_state_to_huggingface and not saves_states:
        yield "--save_state_to_huggingface does nothing without --save_state or --save_state_on_train_end"
    if hub.resume_from_huggingface and output.resume is None:
        yield "--resume_from_huggingface does nothing without --resume"
    if hub.huggingface_repo_id is not None:
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            yield UserError(
                "--huggingface_repo_id with HF_HUB_OFFLINE, which forbids uploads",
                hint="unset HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE), or leave --huggingface_repo_id out",
            )


class HubRepository:
    """The repository that a run uploads to."""

    def __init__(self, options: HubOptions):
        assert options.huggingface_repo_id is not None
        self.repo_id = options.huggingface_repo_id
        self.repo_type = options.huggingface_repo_type
        self._is_private = options.huggingface_repo_visibility != "public"
        self._folder = options.folder
        self._token = options.huggingface_token

    def __str__(self) -> str:
        return _PREFIXES[self.repo_type] + self.repo_id

    def path_of(self, path: Path) -> str:
        """The path in the repository of a file or folder of the run."""
        return f"{self._folder}/{path.name}" if self._folder else path.name

    def check_access(self, waits: Sequence[float] = WAITS) -> None:
        """Creates the repository if necessary, and checks write access. Raises `UserError`."""
        if hub_token(self._token) is None:
            raise UserError(f"--huggingface_repo_id {self.repo_id}: no access token", hint=_LOG_IN)
        try:
            retried(self._prepare_once, waits, f"{self} cannot be reached", self._token)
        except Exception as error:  # the library raises all kinds
            raise self._not_usable(error) from error

    def _prepare_once(self) -> None:
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import RepositoryNotFoundError

        api = _api(self._token)
        try:
            is_private = bool(api.repo_info(self.repo_id, repo_type=self.repo_type).private)
        except RepositoryNotFoundError:
            sdk = "static" if self.repo_type == "space" else None
            api.create_repo(
                self.repo_id, private=self._is_private, repo_type=self.repo_type, exist_ok=True, space_sdk=sdk
            )
            logger.info("created the %s repository %s", "private" if self._is_private else "public", self)
        else:
            if is_private != self._is_private:
                logger.warning(
                    "%s already exists and stays %s: --huggingface_repo_visibility applies to a new repository",
                    self, "private" if is_private else "public",
                )  # fmt: skip
        # the first request of an upload, which needs write access; for an empty file nothing else is sent
        nothing = CommitOperationAdd(path_in_repo=self.path_of(Path("empty")), path_or_fileobj=b"")
        api.preupload_lfs_files(self.repo_id, additions=[nothing], repo_type=self.repo_type)

    def _not_usable(self, error: Exception) -> UserError:
        status, reason = _status(error), reason_of(error, self._token)
        if status == 401:
            what, hint = "the Hub does not accept the access token", _LOG_IN
        elif status in (403, 404):
            what = "the access token has no permission to create it, or to write to it"
            hint = f"use a token with write access to {self.repo_id.split('/')[0]}, and check the spelling"
        elif status is None:
            what, hint = "the Hub cannot be reached", "check the network (and HF_ENDPOINT), or upload after the run"
        else:
            what, hint = "the Hub rejects it", "fix the reason given, or leave --huggingface_repo_id out"
        return UserError(f"--huggingface_repo_id {self.repo_id}: {what}: {reason}", hint=hint)

    def upload(self, path: Path) -> None:
        """Uploads a file or folder in one commit, so that a folder is uploaded completely or not at all."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # they would overwrite the training progress bar
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        if not files:
            raise FileNotFoundError(f"{path} is gone")
        operations = [
            CommitOperationAdd(
                path_in_repo=self.path_of(path) + file.as_posix().removeprefix(path.as_posix()), path_or_fileobj=file
            )
            for file in files
        ]
        _api(self._token).create_commit(
            self.repo_id, operations, commit_message=f"Upload {path.name}", repo_type=self.repo_type
        )

    def reason(self, error: Exception) -> str:
        return reason_of(error, self._token)

    def upload_command(self, path: Path) -> str:
        """The command that uploads `path` by hand."""
        kind = [] if self.repo_type == "model" else ["--repo-type", self.repo_type]
        return command_line(["hf", "upload", self.repo_id, str(path), self.path_of(path), *kind])

    def try_again(self, path: Path, waits: Sequence[float]) -> None:
        """Uploads `path`, with retries after `waits` seconds. Raises the error of the last attempt."""
        retried(lambda: self.upload(path), waits, f"{path} is not uploaded yet", self._token)


def _api(token: str | None) -> HfApi:
    """The Hub client, with a timeout: without one it would wait forever for a server that does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_session

    get_session().timeout = _TIMEOUT_SECONDS
    return HfApi(token=token)


def hub_token(given: str | None) -> str | None:
    """The access token in use: the one given, HF_TOKEN, or that of `hf auth login`."""
    from huggingface_hub import get_token

    return given or get_token()


def retried(work: Callable[[], T], waits: Sequence[float], what: str, token: str | None) -> T:
    """`work()`, retried after each wait (seconds) on transient errors. Raises the error of the last attempt."""
    for wait in waits:
        try:
            return work()
        except Exception as error:
            if not _is_transient(error):
                raise
            logger.warning("%s, retrying in %g s: %s", what, wait, reason_of(error, token))
        time.sleep(wait)
    return work()


def _is_transient(error: Exception) -> bool:
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    status = _status(error)
    is_refusal = status is not None and 400 <= status < 500 and status not in _RETRIED_STATUSES
    return not is_refusal and not isinstance(_cause(error), (HFValidationError, OfflineModeIsEnabled))


def _cause(error: BaseException) -> BaseException:
    """The original error, where the Hub's library has wrapped it in a `RuntimeError` that says less."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: Exception) -> int | None:
    """The HTTP status of the Hub's answer, if there was one."""
    return getattr(getattr(_cause(error), "response", None), "status_code", None)


def reason_of(error: Exception, token: str | None) -> str:
    """The error in one line, without the token and without query strings of URLs, which can contain signatures."""
    cause = _cause(error)
    text = " ".join(str(cause).split("For more information")[0].split()) or type(cause).__name__
    text = re.sub(r"\?[^\s'\"]+", "", text)
    secret = hub_token(token)
    if secret:
        text = text.replace(secret, "...")
    return text if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH]}..."


@dataclass(frozen=True)
class HubPath:
    """A folder in a repository of the Hub."""

    repo_id: str
    path: str
    revision: str
    repo_type: str

    def __str__(self) -> str:
        return f"{self.path} in {_PREFIXES[self.repo_type]}{self.repo_id} at {self.revision}"


def parse_hub_path(text: str) -> HubPath:
    """`owner/name/path`, `owner/name/path:revision` or `owner/name/path:revision:kind`. Raises `UserError`."""
    where, _, rest = text.partition(":")
    revision, _, repo_type = rest.partition(":")
    match = re.fullmatch(rf"({REPO_ID})/(.+)", where.rstrip("/"), re.ASCII)
    if match is None or {".", "..", ""} & set(match[2].split("/")) or repo_type not in ("", *_PREFIXES):
        raise UserError(f"--resume {text} is not a path on the Hub, as --resume_from_huggingface needs", hint=_FORM)
    return HubPath(match[1], match[2], revision or "main", repo_type or "model")


def read_hub_state(text: str, token: str | None) -> FoundState:
    """The state that `--resume` names, from the Hub or its cache. Raises `UserError`.

    A local state folder of that name comes first: a stopped run prints such a folder in its command to resume.
    """
    if text == AUTO:
        raise UserError(
            "--resume auto with --resume_from_huggingface: auto searches --output_dir, not the Hub", hint=_FORM
        )
    if (Path(text) / HEADER).is_file():
        logger.warning("--resume %s is a local folder, which is used; --resume_from_huggingface has no effect", text)
        return read_whole_state(text)
    place = parse_hub_path(text)
    folder = _download(place, token)
    try:
        return read_whole_state(str(folder))
    except UserError as error:
        raise UserError(f"--resume {place}: {error.message}", hint="choose another state or revision") from None


def _download(place: HubPath, token: str | None) -> Path:
    """Downloads the state into the cache of the Hub's library, which locks files that several processes download."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _fetch(place, token)
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"--resume {place}: the Hub cannot be reached, and its cache has no such state",
            hint="check the network (and HF_ENDPOINT, HF_HUB_OFFLINE), or give a local state folder",
        ) from error
    except Exception as error:  # the library raises all kinds
        raise _not_found(place, error, token) from error
    found = folder / place.path
    if not found.is_dir():
        raise UserError(
            f"--resume {place}: there is no such folder", hint="check the path, or add another revision after a colon"
        )
    logger.info("--resume: %s, commit %s", place, folder.name)
    return found


class _Repository(TypedDict):
    repo_id: str
    repo_type: str
    revision: str


def _fetch(place: HubPath, token: str | None) -> Path:
    """The local copy of the repository at the newest commit; at the last cached one where the Hub does not answer."""
    from huggingface_hub import snapshot_download

    # an exact list: other files of the repository are neither downloaded nor read
    names = [re.sub(r"([*?[])", r"[\1]", f"{place.path}/{name}") for name in (HEADER, WEIGHTS, TRAINING)]
    repository = _Repository(repo_id=place.repo_id, repo_type=place.repo_type, revision=place.revision)
    waiting = f"--resume {place} is not downloaded yet"
    try:
        retried(lambda: _api(token).repo_info(**repository), WAITS[:1], waiting, token)
    except Exception as error:
        if _status(error) is not None:
            raise
        logger.warning("--resume %s: the Hub cannot be reached, its cache is used: %s", place, reason_of(error, token))
        return Path(snapshot_download(**repository, allow_patterns=names, local_files_only=True))
    download = partial(snapshot_download, **repository, allow_patterns=names, token=token)
    return Path(retried(download, WAITS[:1], waiting, token))


def _not_found(place: HubPath, error: Exception, token: str | None) -> UserError:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return UserError(
            f"--resume {place}: the repository has no such revision", hint="name a branch, a tag or a commit of it"
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"--resume {place}: no such {place.repo_type} repository, or the access token has no permission to read it",
            hint=f"check the spelling; where it is private, {_LOG_IN}",
        )
    hint = _LOG_IN if _status(error) in (401, 403) else "try again, or give a local state folder"
    return UserError(f"--resume {place}: {reason_of(error, token)}", hint=hint)
