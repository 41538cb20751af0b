"""What every entry script does around its work: logging, errors, exit status."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from library.cli.errors import Stopped, UserError, UserErrors
from library.cli.parser import OutputConfigWritten

USER_ERROR_STATUS = 2
SIGNAL_STATUS = 128  # plus the number of the signal, as shells have it


def run_entry(work: Callable[[], None]) -> int:
    """Runs `work` and returns the exit status: 0, 2 for what the user can mend, 130 for Ctrl-C, 143 for SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(_Formatter())
    for chatty in ("httpx", "tensorboard", "PIL", "diffusers", "transformers", "accelerate"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # at every start it warns of a 4-bit kernel for CPUs, which nothing here uses
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    try:
        work()
    except OutputConfigWritten as written:
        sys.stderr.write(f"options written to {written}\n")
    except UserErrors as errors:
        for error in errors.errors:
            sys.stderr.write(f"error: {error}\n")
        return USER_ERROR_STATUS
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR_STATUS
    except Stopped as stopped:
        if int(os.environ.get("RANK", 0)) == 0:  # of several processes the one that writes
            sys.stderr.write(f"stopped by {signal.Signals(stopped.signal_number).name}. {_way_on(stopped)}\n")
        return SIGNAL_STATUS + stopped.signal_number
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return SIGNAL_STATUS + signal.SIGINT
    return 0


def _way_on(stopped: Stopped) -> str:
    """The command that continues the run, without its secrets."""
    if stopped.state is None:
        return "No state was saved (--no-save_state_on_signal)."
    start = ["accelerate", "launch"] if int(os.environ.get("WORLD_SIZE", 1)) > 1 else [Path(sys.executable).name]
    kept, left_out = _without_start(sys.argv, stopped.secret_flags)
    words = [*start, *kept, "--resume", stopped.state]
    quoted = subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
    again = f" (give {' and '.join(left_out)} again)" if left_out else ""
    return f"To go on{again}: {quoted}"


def _without_start(words: Sequence[str], secret_flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line without what says where the run begins and without secrets; the secret flags it had."""
    valued = ("--resume", "--initial_epoch", "--initial_step", *secret_flags)
    alone = ("--skip_until_initial_step", "--overwrite", "--resume_from_huggingface")
    kept, secrets, is_value = [], [], False
    for word in words:
        flag = "" if is_value else word.split("=")[0]
        if flag in secret_flags and flag not in secrets:
            secrets.append(flag)
        if not is_value and flag not in (*valued, *alone):
            kept.append(word)
        is_value = not is_value and word in valued
    return kept, secrets


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
