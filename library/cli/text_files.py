"""Text files that a user named: read whole, or told apart by what is wrong with them."""

from __future__ import annotations

from pathlib import Path

from library.cli.errors import UserError


def read_text(path: str | Path, named_by: str, ending: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, that the user named with `named_by`.

    Raises `UserError` for a file that is missing, is a folder, cannot be read or is not UTF-8. `ending`: of the file
    that is expected, for the hint.
    """
    file = Path(path)
    try:
        if not file.is_file():
            kind = "is a folder" if file.is_dir() else "does not exist"
            raise UserError(f"{named_by} {path} {kind}", hint=f"give the path of a {ending} file")
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{named_by} {path} is not UTF-8 text: byte {error.start}", hint="save it as UTF-8") from None
    except ValueError:  # a null character
        raise UserError(f"{named_by} {str(path)!r} is no path", hint=f"give the path of a {ending} file") from None
    except OSError as error:
        raise UserError(
            f"{named_by} {path} cannot be read: {error.strerror}", hint="make it readable, or name another file"
        ) from None
