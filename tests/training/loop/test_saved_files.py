"""If these fail, a run's page gives a wrong hash of a file, or hashes gigabytes again and again."""

import hashlib
import os

from library.training.loop import saved_files
from library.training.loop.saved_files import SavedFiles


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def changed_unnoticed(path, content):
    """Other bytes of the same number and time."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_files_and_folders_are_listed_with_size_and_hash(tmp_path):
    (tmp_path / "run.safetensors").write_bytes(b"weights")
    (tmp_path / "run-000001" / "unet").mkdir(parents=True)
    (tmp_path / "run-000001" / "unet" / "config.json").write_bytes(b"{}")
    (tmp_path / "other.safetensors").write_bytes(b"of another run")
    files = SavedFiles(tmp_path)
    for name in ("run-000001", "run.safetensors", "pruned.safetensors"):
        files.add(tmp_path / name)
    described = files.described(hashes_all=False)
    assert [(file.name, file.size, file.sha256) for file in described] == [
        ("run-000001/unet/config.json", 2, sha256(b"{}")),
        ("run.safetensors", 7, sha256(b"weights")),
    ]


def test_a_file_is_hashed_once_and_again_when_it_is_replaced(tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"one")
    files = SavedFiles(tmp_path)
    files.add(path)
    first = files.described(hashes_all=True)
    changed_unnoticed(path, b"two")
    assert files.described(hashes_all=True) == first
    resumed = SavedFiles(tmp_path)
    resumed.go_on(first)
    assert resumed.described(hashes_all=True) == first
    path.write_bytes(b"three")
    assert [file.sha256 for file in resumed.described(hashes_all=True)] == [sha256(b"three")]


def test_large_files_wait_for_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_files, "HASHED_AT_ONCE", 3)
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"four")
    files = SavedFiles(tmp_path)
    files.add(path)
    assert [file.sha256 for file in files.described(hashes_all=False)] == [None]
    assert [file.sha256 for file in files.described(hashes_all=True)] == [sha256(b"four")]
    assert [file.sha256 for file in files.described(hashes_all=False)] == [sha256(b"four")]
