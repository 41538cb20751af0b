"""What every entry script does around its work: logging, errors, exit status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from library.cli.errors import UserError, UserErrors
from library.cli.parser import OutputConfigWritten

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130


def run_entry(work: Callable[[], None]) -> int:
    """Runs `work` and returns the exit status: 0, 2 for what the user can mend, 130 for Ctrl-C."""
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
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED_STATUS
    return 0


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
