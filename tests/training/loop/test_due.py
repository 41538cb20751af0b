"""If these fail, a run validates, draws or saves at other times than asked for, or loses its last epoch's save."""

from library.training.checkpoints.options import OutputOptions
from library.training.evaluation.options import SampleOptions, ValidationOptions
from library.training.loop.due import Due, OutputSchedule
from library.training.step_plan import Position, StepPlan

NOTHING = Due()


def schedule(output=None, samples=None, validation=None, *, num_epochs=4, epochs_between_saves=None):
    """A plan of 5 steps an epoch."""
    plan = StepPlan(
        seed=0,
        num_micro_batches=5,
        accumulation=1,
        num_processes=1,
        num_steps=5 * num_epochs,
        num_epochs=num_epochs,
        epochs_between_saves=epochs_between_saves,
    )
    return OutputSchedule(
        OutputOptions(**output or {}), SampleOptions(**samples or {}), ValidationOptions(**validation or {}), plan
    )


def steps(of, what, upto=20):
    return [step for step in range(1, upto + 1) if getattr(of.after_step(step), what)]


def epochs(of, what, upto=4):
    return [epoch for epoch in range(1, upto + 1) if getattr(of.after_epoch(epoch), what)]


def test_unless_asked_only_the_validation_loss_of_each_epoch_is_due():
    plain = schedule()
    assert plain.at_start() == Due(validate=True)
    assert all(plain.after_step(step) == NOTHING for step in range(1, 21))
    assert all(plain.after_epoch(epoch) == Due(validate=True) for epoch in range(1, 5))
    assert not plain.saves_state_at_end and plain.saves_state_on_signal


def test_saves_of_steps_and_epochs():
    assert steps(schedule({"save_every_n_steps": 6}), "save") == [6, 12, 18]
    assert epochs(schedule(epochs_between_saves=1), "save") == [1, 2, 3]  # the fourth is the end's
    assert epochs(schedule(epochs_between_saves=3), "save") == [3]


def test_samples_of_epochs_replace_those_of_steps():
    both = schedule(samples={"sample_every_n_steps": 5, "sample_every_n_epochs": 2, "sample_at_first": True})
    assert both.at_start().sample and steps(both, "sample") == [] and epochs(both, "sample") == [2, 4]
    assert steps(schedule(samples={"sample_every_n_steps": 5}), "sample") == [5, 10, 15, 20]


def test_validation_of_steps_replaces_that_of_every_epoch():
    by_steps = schedule(validation={"validate_every_n_steps": 8})
    assert steps(by_steps, "validate") == [8, 16] and epochs(by_steps, "validate") == []
    both = schedule(validation={"validate_every_n_steps": 8, "validate_every_n_epochs": 3})
    assert steps(both, "validate") == [8, 16] and epochs(both, "validate") == [3]


def test_states():
    assert schedule({"save_state": True}).saves_state_at_end
    assert schedule({"save_state_on_train_end": True}).saves_state_at_end
    assert not schedule({"save_state_on_signal": False}).saves_state_on_signal
    assert schedule({"save_state_on_signal": False, "save_state": True}).saves_state_on_signal


def test_samples_of_an_epoch_that_the_number_of_steps_cuts_are_due_at_the_end():
    """Steps 16 and 17 of 17 are in epoch 4; whole epochs have had theirs already."""
    every_second = schedule(samples={"sample_every_n_epochs": 2})
    assert every_second.samples_at_end(Position(3, 2, 17))
    assert not every_second.samples_at_end(Position(4, 0, 20)) and not every_second.samples_at_end(Position(2, 2, 12))
    assert not schedule(samples={"sample_every_n_steps": 5}).samples_at_end(Position(3, 2, 17))
