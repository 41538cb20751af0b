"""If these fail, a run takes other steps than asked for, or loses its place when resumed."""

from library.training.options import TrainingOptions
from library.training.train_plan import Position, make_train_plan


def make(num_micro_batches=7, processes=1, **options):
    return make_train_plan(
        TrainingOptions(**options), seed=1, num_micro_batches=num_micro_batches, num_processes=processes
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
    assert position == Position(3, 0, 12)
