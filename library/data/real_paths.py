"""The one notion of "the same file" of this package: equal absolute paths without symbolic links."""

from __future__ import annotations

import os


class RealPaths:
    """Real paths of folders and files. Each folder is resolved once, since a dataset has few and many images."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def folder(self, path: str) -> str:
        """The real path of a folder, "" for the working directory; spelled in one way where case does not count."""
        if path not in self._folders:
            self._folders[path] = _real_path(path or ".")
        return self._folders[path]

    def file(self, path: str) -> str:
        """The real path of a file, which need not exist."""
        folder, name = os.path.split(path)
        full = os.path.join(self.folder(folder), os.path.normcase(name))
        return _real_path(full) if os.path.islink(full) else full


def _real_path(path: str) -> str:
    try:
        return os.path.normcase(os.path.realpath(path))
    except (OSError, ValueError):  # ValueError: a null character; opening it will report the error
        return os.path.normcase(os.path.abspath(path))
