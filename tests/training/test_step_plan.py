"""If these fail, a run takes other steps than asked for, or loses its place when resumed."""

import pytest

from library.cli.errors import UserError
from library.data.records import MicroBatch
from library.training.checkpoints.options import OutputOptions
from library.training.options import TrainingOptions
from library.training.run_setup import first_position, make_step_plan
from library.training.step_plan import Position


def make(num_micro_batches=7, processes=1, output=None, start=Position(), **options):  # noqa: B008 - it is frozen
    return make_step_plan(
        TrainingOptions(**options),
        output or OutputOptions(),
        seed=1,
        num_micro_batches=num_micro_batches,
        num_processes=processes,
        start=start,
    )


def test_steps_and_epochs():
    plan = make(max_train_steps=10)
    assert (plan.steps_per_epoch, plan.num_steps, plan.num_epochs) == (7, 10, 2)
    plan = make(max_train_steps=10, max_train_epochs=3)  # epochs win
    assert (plan.num_steps, plan.num_epochs) == (21, 3)
    plan = make(max_train_epochs=3, gradient_accumulation_steps=3)
    assert (plan.steps_per_epoch, plan.num_steps) == (3, 9)


def test_processes_and_accumulation_take_the_same_groups():
    one = make(gradient_accumulation_steps=4, max_train_epochs=1)
    two = make(gradient_accumulation_steps=2, processes=2, max_train_epochs=1)
    assert list(one.groups(0)) == list(two.groups(0)) == [range(0, 4), range(4, 7)]


def test_every_position_continues_where_the_walk_would():
    plan = make(gradient_accumulation_steps=2, max_train_epochs=3)
    position, walked = Position(), []
    while position.global_step < plan.num_steps:
        walked.append((position.epoch, next(plan.groups(position.step_in_epoch))))
        position = plan.after_step(position)
    assert walked == [(epoch, group) for epoch in range(3) for group in plan.groups(0)]
    assert position == Position(3, 0, 12, is_epoch_end_due=True)


@pytest.mark.parametrize(
    ("num_micro_batches", "options", "num_steps"),
    [
        (10, {"max_train_epochs": 4, "gradient_accumulation_steps": 2}, 30),  # 20 are done, 2 epochs of 5 are left
        (10, {"max_train_epochs": 4, "processes": 2}, 30),
        (9, {"max_train_epochs": 4}, 38),
        (3, {"max_train_epochs": 3}, 23),
        (3, {"max_train_epochs": 2}, 20),  # nothing is left
        (10, {"max_train_epochs": 4}, 40),  # as it was
        (9, {"max_train_steps": 38}, 38),
        (9, {"max_train_steps": 30}, 30),
    ],
)
def test_epochs_before_a_resume_count_as_they_were_made(num_micro_batches, options, num_steps):
    """A state from the end of the second epoch of 10 steps, resumed with other images, accumulation or processes."""
    start = Position(2, 0, 20)
    plan = make(num_micro_batches, start=start, **options)
    assert plan.num_steps == num_steps
    position, ends = start, []
    while position.global_step < plan.num_steps:
        group = next(plan.groups(position.step_in_epoch))
        micro_batch = MicroBatch(position.epoch, group[0], dataset_index=0, item_indices=(), first_position=0)
        assert plan.clock.step_of(micro_batch) == position.global_step  # what captions warm up by
        position = plan.after_step(position)
        ends += [position.epoch] if position.step_in_epoch == 0 else []
    # the last epoch's save is that of the end, and no epoch before it lacks its own
    epochs = options.get("max_train_epochs") or {38: 4, 30: 4}[num_steps]
    assert ends == list(range(3, plan.num_epochs + 1))[: len(ends)] and plan.num_epochs == epochs


@pytest.mark.parametrize(("epochs", "ratio", "between"), [(10, 5, 2), (10, 4, 2), (3, 5, 1), (7, 1, 7), (9, None, 3)])
def test_a_ratio_of_saves_gives_at_least_so_many(epochs, ratio, between):
    output = OutputOptions(save_every_n_epochs=3, save_n_epoch_ratio=ratio)
    assert make(max_train_epochs=epochs, output=output).epochs_between_saves == between


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Position(1, 1, 9)),  # where the state was
        ({"initial_epoch": 3}, Position(2, 0, 14)),
        ({"initial_step": 16}, Position(2, 0, 14)),
        ({"initial_step": 16, "initial_epoch": 1, "skip_until_initial_step": True}, Position(2, 2, 16)),
        ({"initial_step": 0}, Position(0, 0, 0)),
    ],
)
def test_where_a_run_begins(options, expected):
    plan = make(num_micro_batches=14, gradient_accumulation_steps=2, max_train_epochs=3)
    assert first_position(OutputOptions(**options), plan, Position(1, 1, 9)) == expected


def test_a_beginning_behind_the_end_is_refused():
    plan = make(max_train_epochs=3)
    for options in ({"initial_step": 21}, {"initial_epoch": 4}):
        with pytest.raises(UserError, match="--initial_(step|epoch) begins behind step 21, and the run has 21"):
            first_position(OutputOptions(**options), plan, Position())
