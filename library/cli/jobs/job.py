"""The frame of a stand-alone script: from a command line to a summary and an exit status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from library.cli.checks import Check
from library.cli.entry import report_error, run_entry
from library.cli.errors import UserError, UserErrors
from library.cli.jobs.outcome import NOTHING_DONE, SOME_FAILED, Outcome, together
from library.cli.jobs.processes import Exchange, rank_and_count
from library.cli.launcher import is_first_process, write_elastic_error_file
from library.cli.options import OptionGroup
from library.cli.parser import Options, parse_options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A stand-alone script; `done`: what its summary calls what was done, such as "captioned".

    `run` does the work of this process and fills the outcome; slow imports belong into it. With several processes each
    does its `own_share`; with `first_process_only` the first does all. `conclude` then gets the outcome of all, in the
    first process, to write what goes into one file; it is called after Ctrl-C too where there is one process.
    """

    program: str
    description: str
    option_groups: tuple[type[OptionGroup], ...]
    run: Callable[[Options, Outcome], None]
    done: str
    conclude: Callable[[Options, Outcome], None] = lambda options, outcome: None
    checks: tuple[Check[Options], ...] = ()
    first_process_only: bool = False


def main(job: Job) -> int:
    """Runs a script on the command line of this process; returns the exit status."""
    return run_entry(lambda: run_job(job, sys.argv[1:]))


def run_job(job: Job, argv: Sequence[str]) -> int:
    """Runs a script: 0, 1 where some failed, 2 where nothing could be done. The same in all processes.

    The first process reports for all, once the last has finished. Raises `UserError` for mistakes on the command line.
    """
    options = parse_options(
        argv, job.option_groups, program=job.program, description=job.description, checks=job.checks
    )
    exchange = Exchange()
    everyones = exchange.all_values(_run(job, options))
    status = 0
    if is_first_process():
        errors = [error for _, error in everyones if error is not None]
        status = _end(job, options, together(outcome for outcome, _ in everyones), errors)
    return exchange.all_values(status)[0]


def _run(job: Job, options: Options) -> tuple[Outcome, UserError | None]:
    outcome = Outcome()
    if job.first_process_only and not is_first_process():
        return outcome, None
    try:
        job.run(options, outcome)
    except UserError as error:
        return outcome, error
    except KeyboardInterrupt:
        if rank_and_count()[1] == 1:
            job.conclude(options, outcome)
        raise
    return outcome, None


def _end(job: Job, options: Options, outcome: Outcome, errors: list[UserError]) -> int:
    """Concludes and reports the work of all processes; returns the exit status."""
    if outcome != Outcome():
        try:
            job.conclude(options, outcome)
        except UserError as error:
            errors.append(error)
        for line in outcome.failures():
            logger.error("%s", line)
        logger.info("%s", outcome.summary(job.done))
    if errors:
        distinct = list({str(error): error for error in errors}.values())
        report_error(distinct[0] if len(distinct) == 1 else UserErrors(distinct))
        return SOME_FAILED if outcome.done else NOTHING_DONE
    if outcome.failed:
        write_elastic_error_file("\n".join([*outcome.failures(), outcome.summary(job.done)]))
    return outcome.status
