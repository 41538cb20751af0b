"""If these fail, somebody finds their saves missing on the Hub, or public, or their access token in a file."""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

import library.training.checkpoints.hub_upload
from library.cli.checks import Check
from library.cli.errors import UserError
from library.cli.parser import parse_options
from library.training.checkpoints.hub_upload import HubRepository, hub_findings, parse_hub_path, read_hub_state
from library.training.checkpoints.options import HubOptions, OutputOptions
from library.training.checkpoints.saves import Saver
from library.training.checkpoints.uploads import Uploads
from library.training.step_plan import Position
from tests.hub_server import LFS_SIZE, READ_TOKEN, WRITE_TOKEN, Fault, Repository, running_hub

NAME = "someone/loras"
SMALL, LARGE = b"small" * 100, bytes(range(256)) * (LFS_SIZE // 128)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub without repositories, which this process takes for the real one; nobody is logged in."""
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def options(**given):
    return HubOptions(**{"huggingface_repo_id": NAME, "huggingface_token": WRITE_TOKEN, **given})


def make_uploads(given=None, *, in_background=False, waits=(0, 0), with_states=True):
    repository = HubRepository(given or options())
    repository.check_access(waits=(0,))
    return Uploads(repository, in_background=in_background, with_states=with_states, waits=waits)


def write(folder, name="run.safetensors", content=LARGE):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def test_a_repository_is_created_and_private(hub, said):
    HubRepository(options()).check_access()
    (request,) = hub.asked_for("POST /api/repos/create")
    assert json.loads(request.body)["visibility"] == "private"
    assert hub.repositories["model", NAME].is_private
    assert f"created the private repository {NAME}" in said.text
    HubRepository(options()).check_access()  # it is there now
    assert len(hub.asked_for("POST /api/repos/create")) == 1
    assert hub.repositories["model", NAME].files == {}, "the check leaves nothing behind"


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_kinds_folders_and_public_repositories(hub, tmp_path, kind):
    given = options(
        huggingface_repo_type=kind, huggingface_repo_visibility="public", huggingface_path_in_repo="/loras/fox/"
    )
    make_uploads(given).add(write(tmp_path))
    repository = hub.repositories[kind, NAME]
    assert not repository.is_private and repository.files == {"loras/fox/run.safetensors": LARGE}


def test_a_public_repository_that_is_there_is_pointed_out(hub, said):
    hub.add(NAME, {}, is_private=False)
    HubRepository(options()).check_access()
    assert f"{NAME} already exists and stays public" in said.text


def test_small_and_large_files_and_folders_arrive_whole(hub, tmp_path, said):
    uploads = make_uploads()
    uploads.add(write(tmp_path, "small.pt", SMALL))
    uploads.add(write(tmp_path, "large.safetensors", LARGE))
    write(tmp_path, "run-state/state.json", SMALL)
    write(tmp_path, "run-state/weights.safetensors", LARGE[1:])
    write(tmp_path, "run-state/deeper/training.pt", LARGE[2:])
    uploads.add(tmp_path / "run-state")
    repository = hub.repositories["model", NAME]
    assert repository.files == {
        "small.pt": SMALL, "large.safetensors": LARGE, "run-state/state.json": SMALL,
        "run-state/weights.safetensors": LARGE[1:], "run-state/deeper/training.pt": LARGE[2:],
    }  # fmt: skip
    # a folder is one commit: nobody sees half a state
    assert repository.titles[2:] == ["Upload small.pt", "Upload large.safetensors", "Upload run-state"]
    assert f"uploaded {tmp_path / 'run-state'} to {NAME}/run-state" in said.text


@pytest.mark.parametrize("then", [500, 503, 429, "hang up"])
@pytest.mark.parametrize("where", ["POST .*/commit/", "PUT /lfs/"])
def test_what_passes_is_tried_again(hub, tmp_path, said, then, where):
    uploads = make_uploads()
    hub.faults.append(Fault(where, then))
    uploads.add(write(tmp_path))
    uploads.finish()
    assert hub.repositories["model", NAME].files == {"run.safetensors": LARGE}
    assert len(hub.asked_for(where)) == 2
    assert not any(record.levelno >= logging.ERROR for record in said.records)


@pytest.mark.parametrize("then", [500, "hang up"])
def test_what_does_not_pass_is_said_once_and_the_next_save_is_uploaded(hub, tmp_path, said, then):
    uploads = make_uploads()
    hub.faults.append(Fault("POST .*/commit/", then, times=3))
    path = write(tmp_path)
    uploads.add(path)
    uploads.add(write(tmp_path, "next.safetensors", SMALL))
    uploads.finish()
    assert hub.repositories["model", NAME].files == {"next.safetensors": SMALL}
    assert len(hub.asked_for("POST .*/commit/")) == 4
    errors = [record.getMessage() for record in said.records if record.levelno == logging.ERROR]
    assert len(errors) == 2 and "\n" not in errors[0] and errors[0].startswith(f"{path} was not uploaded to the Hub: ")
    assert errors[0].endswith(f"upload it with: hf upload {NAME} {path} run.safetensors")
    assert errors[1] == "1 file of the run was not uploaded to the Hub: run.safetensors"


def test_a_refusal_is_not_tried_again(hub, tmp_path, said):
    uploads = make_uploads()
    hub.faults.append(Fault("POST .*/commit/", 403, times=9))
    uploads.add(write(tmp_path))
    assert len(hub.asked_for("POST .*/commit/")) == 1
    assert "run.safetensors was not uploaded to the Hub: 403 Forbidden" in said.text


def test_a_file_that_is_gone_does_not_stop_anything(hub, tmp_path, said):
    uploads = make_uploads(in_background=True)
    uploads.add(tmp_path / "gone.safetensors")
    uploads.add(write(tmp_path))
    uploads.finish()
    assert hub.repositories["model", NAME].files == {"run.safetensors": LARGE}
    assert "gone.safetensors was not uploaded to the Hub" in said.text


def test_uploads_in_the_background_keep_their_order_and_are_waited_for(hub, tmp_path, said):
    uploads, gate = make_uploads(in_background=True), threading.Event()
    hub.faults.append(Fault("POST .*/commit/", gate))
    paths = [write(tmp_path, f"run-{number}.safetensors", SMALL + bytes([number])) for number in range(4)]
    for path in paths:
        uploads.add(path)  # returns although the Hub does not answer
    assert not uploads.is_done_with(paths[0], seconds=0.01)
    gate.set()
    assert uploads.is_done_with(paths[1])
    uploads.finish()
    repository = hub.repositories["model", NAME]
    assert repository.titles[2:] == [f"Upload {path.name}" for path in paths]
    assert set(repository.files) == {path.name for path in paths}


def test_a_hub_that_does_not_answer_is_given_up(hub, tmp_path, said, monkeypatch):
    """Without a limit the run would wait for it for ever."""
    uploads, gate = make_uploads(), threading.Event()
    monkeypatch.setattr(library.training.checkpoints.hub_upload, "_TIMEOUT_SECONDS", 0.2)
    hub.faults.append(Fault("POST .*/commit/", gate, times=3))
    uploads.add(write(tmp_path))
    assert "run.safetensors was not uploaded to the Hub: timed out" in said.text
    gate.set()


class _Method:
    ending = ".safetensors"

    def save(self, path, dtype, metadata, position):
        path.write_bytes(SMALL + path.name.encode())


@pytest.mark.parametrize("in_background", [False, True])
def test_a_save_is_uploaded_before_it_is_let_go(hub, tmp_path, in_background):
    gate = threading.Event()
    uploads = make_uploads(in_background=in_background, with_states=False)
    if in_background:
        hub.faults.append(Fault("POST .*/commit/", gate))
        threading.Timer(0.3, gate.set).start()
    output = OutputOptions(output_dir=str(tmp_path), output_name="run", save_last_n_epochs=1)
    saver = Saver(output, _Method(), 1, uploads)
    for epoch in (1, 2, 3):
        assert saver.save(f"-{epoch:06d}", {}, Position())
        assert saver.save_state(f"-{epoch:06d}", lambda folder: folder.mkdir())
        saver.upload()
        saver.pruner.prune("epoch", epoch, states=False)
    saver.finish_uploads()
    names = [f"run-{epoch:06d}.safetensors" for epoch in (1, 2, 3)]
    assert set(hub.repositories["model", NAME].files) == set(names), "all saves, and no states unless asked for"
    assert [path.name for path in tmp_path.glob("*.safetensors")] == names[2:]


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"huggingface_token": None}, "no access token", "hf auth login"),
        ({"huggingface_token": "hf_wrong"}, "does not accept the access token", "hf auth login"),
        (
            {"huggingface_token": READ_TOKEN},
            "has no permission to create it, or to write to it",
            "write access to someone",
        ),
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_a_repository_that_cannot_be_written_to_is_said(hub, given, message, hint, is_there):
    if is_there:
        hub.add(NAME, {}, is_private=True)
    with pytest.raises(UserError, match=message) as caught:
        HubRepository(options(**given)).check_access(waits=(0,))
    assert caught.value.message.startswith(f"--huggingface_repo_id {NAME}: ") and hint in caught.value.hint
    assert "hf_wrong" not in str(caught.value) and READ_TOKEN not in str(caught.value)
    assert "\n" not in caught.value.message


def test_a_hub_that_is_away_is_said(hub, monkeypatch):
    hub.faults.append(Fault("GET /api/models", "hang up", times=2))
    with pytest.raises(UserError, match="the Hub cannot be reached") as caught:
        HubRepository(options()).check_access(waits=(0,))
    assert "HF_ENDPOINT" in caught.value.hint
    hub.faults.append(Fault("GET /api/models", 500))
    HubRepository(options()).check_access(waits=(0,))  # a passing error does not end the run


def test_the_login_of_the_hubs_library_is_used(hub, tmp_path, monkeypatch):
    (tmp_path / "token").write_text(WRITE_TOKEN)
    make_uploads(options(huggingface_token=None)).add(write(tmp_path))
    assert hub.repositories["model", NAME].files == {"run.safetensors": LARGE}


def parsed(*argv):
    return parse_options(
        ["--output_dir", "out", *argv],
        (OutputOptions, HubOptions),
        program="x",
        description="x",
        checks=[Check("options", lambda options: hub_findings(options[HubOptions], options[OutputOptions]))],
    )


def problems(*argv):
    with pytest.raises(UserError) as caught:
        parsed(*argv)
    return str(caught.value)


def test_contradictions_are_found_before_anything_is_done():
    repo = ("--huggingface_repo_id", NAME)
    assert "is not the name of a repository" in problems("--huggingface_repo_id", "loras")
    assert "../x is not a folder of a repository" in problems(*repo, "--huggingface_path_in_repo", "../x")
    assert "give one of model, dataset, space" in problems(*repo, "--huggingface_repo_type", "bucket")
    said = problems(*repo, "--huggingface_token", "hf_abc\n")
    assert "--huggingface_token has characters" in said and "hf_abc" not in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--save_state_to_huggingface"], "--save_state_to_huggingface does nothing without --huggingface_repo_id"),
        (["--async_upload"], "--async_upload does nothing without --huggingface_repo_id"),
        (["--huggingface_path_in_repo", "a"], "--huggingface_path_in_repo does nothing without --huggingface_repo_id"),
        (
            ["--huggingface_repo_id", NAME, "--save_state_to_huggingface"],
            "--save_state_to_huggingface does nothing without --save_state",
        ),
        (["--resume_from_huggingface"], "--resume_from_huggingface does nothing without --resume"),
    ],
)
def test_what_does_nothing_is_a_warning(argv, said, caplog):
    """Front ends write every option of the panel, whether there is a repository or not."""
    parsed(*argv)
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(said)


@pytest.mark.parametrize(("given", "private"), [("public", False), ("private", True), ("secret", True), ("", True)])
def test_a_repository_is_public_only_where_that_is_said(given, private):
    hub = parsed("--huggingface_repo_visibility", given)[HubOptions]
    assert (hub.huggingface_repo_visibility != "public") is private


def test_uploads_are_refused_where_the_hub_is_switched_off(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE, which forbids uploads" in problems("--huggingface_repo_id", NAME)


def test_places_on_the_hub_are_read():
    assert str(parse_hub_path("a/b/c/run-state")) == "c/run-state in a/b at main"
    assert str(parse_hub_path("a/b/run-state:v1")) == "run-state in a/b at v1"
    assert str(parse_hub_path("a/b/run-state::dataset")) == "run-state in datasets/a/b at main"
    for text in ("a/b", "run-state", "a/b/c:main:bucket", "a/b/../c", "/a/b/c", "a/b//c", ""):
        with pytest.raises(UserError, match="is not a path on the Hub"):
            parse_hub_path(text)
    with pytest.raises(UserError, match="--resume auto with --resume_from_huggingface"):
        read_hub_state("auto", None)


def test_errors_of_resuming_name_repository_path_and_revision(hub, tmp_path):
    repository: Repository = hub.add(NAME, {"run-state/state.json": b"{}"}, is_private=True)

    def said(place, token=READ_TOKEN):
        with pytest.raises(UserError) as caught:
            read_hub_state(place, token)
        assert READ_TOKEN not in str(caught.value)
        return str(caught.value)

    assert said(f"{NAME}/run-state:v9").startswith(
        f"--resume run-state in {NAME} at v9: the repository has no such revision"
    )
    assert said("someone/else/run-state").startswith("--resume run-state in someone/else at main: no such model")
    assert "where it is private, give --huggingface_token" in said(f"{NAME}/run-state", None)
    assert said(f"{NAME}/run-state", "hf_wrong").startswith(f"--resume run-state in {NAME} at main: ")
    assert "there is no such folder" in said(f"{NAME}/other-state")
    first = repository.commits[0][0]
    assert f"--resume run-state in {NAME} at {first}: there is no such folder" in said(f"{NAME}/run-state:{first}")
    assert "state.json is damaged" in said(f"{NAME}/run-state") and "choose another" in said(f"{NAME}/run-state")
    hub.faults.append(Fault("GET", "hang up", times=99))
    assert "the Hub cannot be reached, and its cache has no such state" in said("someone/else/run-state")


def test_the_hubs_library_is_not_imported_where_no_option_asks_for_it():
    code = (
        "import sys, train_network\n"
        "try: train_network.train(['--help'])\n"
        "except SystemExit: pass\n"
        "try: train_network.train(['--output_dir', 'x'])\n"
        "except Exception: pass\n"
        "assert 'huggingface_hub' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
