"""Checks report what they find together; what cannot be read is reported once, and nothing that needs it runs."""

from __future__ import annotations

import logging

import pytest

from library.cli.checks import Check, find_errors, read_once, report, run_checks
from library.cli.errors import UserError, UserErrors


class Files:
    """A context with one thing that can be read and one that cannot."""

    def __init__(self) -> None:
        self.reads: list[str] = []

    @read_once
    def good(self) -> str:
        self.reads.append("good")
        return "good"

    @read_once
    def broken(self) -> str:
        self.reads.append("broken")
        raise UserErrors([UserError("first fault"), UserError("second fault")])


def test_what_cannot_be_read_is_reported_once_and_its_other_checks_are_skipped():
    def of_broken(files):
        yield UserError("before")
        yield UserError(f"after {files.broken}")

    checks = [Check("options", of_broken), Check("options", of_broken), Check("options", lambda files: [files.good])]
    files, other = Files(), Files()
    assert [str(error) for error in find_errors(checks, "options", files)] == [
        "before", "first fault", "second fault", "before",
    ]  # fmt: skip
    assert files.reads == ["broken", "good"] and files.good == "good" and files.reads == ["broken", "good"]
    with pytest.raises(UserErrors):  # of each context by itself
        _ = other.broken


def test_stages_run_apart_and_warnings_are_logged(caplog):
    caplog.set_level(logging.WARNING)
    checks = [
        Check("device", lambda context: [UserError("no such device")]),
        Check("options", lambda context: [f"{context} has no effect"]),
        Check("device", lambda context: [UserError("too small")]),
    ]
    run_checks(checks, "options", "--flag")
    assert [record.message for record in caplog.records] == ["--flag has no effect"]
    with pytest.raises(UserErrors, match="no such device\ntoo small"):
        run_checks(checks, "device", "--flag")
    with pytest.raises(UserError, match="one"):
        report(iter(["a warning", UserError("one")]))
    assert caplog.records[-1].message == "a warning"
