"""The frame of every entry script: logging, errors, exit status."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from library.cli.errors import LostProcess, Stopped, UserError, UserErrors
from library.cli.launcher import command_line, is_first_process, launch_command, write_elastic_error_file
from library.cli.logging import set_console_level
from library.cli.parser import OutputConfigWritten

USER_ERROR_STATUS = 2
SIGNAL_STATUS = 128  # plus the number of the signal, as shells have it
# options that say where a run starts
_START_WITH_VALUE = ("--resume", "--initial_epoch", "--initial_step")
_START = ("--skip_until_initial_step", "--overwrite", "--resume_from_huggingface")


def run_entry(work: Callable[[], int | None]) -> int:
    """Runs `work` and returns the exit status: its own or 0, 2 for a user's error, 130 for Ctrl-C, 143 for SIGTERM."""
    # of other packages only warnings: some log each request with its whole URL
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(_Formatter())
    set_console_level(logging.INFO)
    # at every start it warns of a 4-bit kernel for CPUs, which nothing here uses
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    start = launch_command()
    try:
        return work() or 0
    except OutputConfigWritten as written:
        sys.stderr.write(f"options written to {written}\n")
    except UserError as error:
        return report_error(error)
    except Stopped as stopped:
        if is_first_process():  # the one that saves
            sys.stderr.write(
                f"stopped by {signal.Signals(stopped.signal_number).name}. {_resume_hint(stopped, start)}\n"
            )
        return SIGNAL_STATUS + stopped.signal_number
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return SIGNAL_STATUS + signal.SIGINT
    except Exception:
        write_elastic_error_file(traceback.format_exc())
        raise
    return 0


def report_error(error: UserError) -> int:
    """Shows an error, here and at the launcher; returns the exit status."""
    texts = error.texts() if isinstance(error, UserErrors) else [str(error)]
    text = "\n".join(f"error: {each}" for each in texts)
    sys.stderr.write(f"{text}\n")
    write_elastic_error_file(text, is_cause=not isinstance(error, LostProcess))
    return USER_ERROR_STATUS


def _resume_hint(stopped: Stopped, start: Sequence[str]) -> str:
    """How to resume the run: its command line without secrets. `start`: the launch command."""
    if stopped.state is None:
        return "No state was saved."
    kept, left_out = without_options(sys.argv, (*_START_WITH_VALUE, *stopped.secret_flags), _START)
    secrets = [flag for flag in left_out if flag in stopped.secret_flags]
    quoted = command_line([*start, *kept, "--resume", stopped.state])
    again = f" (give {' and '.join(secrets)} again)" if secrets else ""
    return f"To resume{again}: {quoted}"


def without_options(
    words: Sequence[str], with_value: Sequence[str], without_value: Sequence[str]
) -> tuple[list[str], list[str]]:
    """A command line without these options, in full or abbreviated; and which of them it had, each once."""
    kept, left_out, is_value = [], [], False
    for word in words:
        if is_value:
            is_value = False
            continue
        given, equals, _ = word.partition("=")
        flag = _in_full(given, (*with_value, *without_value))
        if flag in (*with_value, *without_value):
            left_out.append(flag)
        else:
            kept.append(word)
        is_value = flag in with_value and not equals
    return kept, list(dict.fromkeys(left_out))


def _in_full(flag: str, flags: Sequence[str]) -> str:
    """The one of the flags that is given, as it is or abbreviated, as the parser takes it; else `flag`."""
    if flag in flags or not flag.startswith("--") or flag == "--":
        return flag
    return next((full for full in flags if full.startswith(flag)), flag)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
