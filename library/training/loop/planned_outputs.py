"""What a run is going to write, for its first lines on the console."""

from __future__ import annotations

from collections.abc import Iterator

from library.cli.errors import plural
from library.training.checkpoints.options import OutputOptions
from library.training.checkpoints.saved_names import file_stem
from library.training.evaluation.options import SampleOptions, validation_options
from library.training.loop.due import OutputSchedule
from library.training.run_setup import RunSetup


def planned_lines(run: RunSetup) -> Iterator[str]:
    """What would be written when."""
    options, ending = run.options, run.context.script.ending_of(run.options)
    output, samples = options[OutputOptions], options[SampleOptions]
    schedule = OutputSchedule(output, samples, validation_options(options), run.plan)
    names = [f"{file_stem(output.output_name, suffix)}{ending}" for suffix in schedule.saves(run.start)]
    shown = names if len(names) <= 4 else [*names[:2], "...", *names[-2:]]
    states = (
        ", with states" if output.save_state else ", with a state at the end" if schedule.saves_state_at_end else ""
    )
    yield f"output: {plural(len(names), 'save')} in {output.output_dir}{states}: {', '.join(shown)}"
    if run.context.prompts:
        rounds = schedule.num_sample_rounds(run.start)
        images = plural(len(run.context.prompts), "sample image")
        yield f"{plural(rounds, 'round')} of {images} in {run.context.sample_folder}"
