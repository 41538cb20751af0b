"""If these fail, an optimizer does not learn, learns something else than its paper says, or forgets at a resume."""

import logging
import math

import numpy as np
import pytest
import torch

from library.cli.checks import report
from library.cli.errors import UserError
from library.training.checkpoints.states import RunIdentity, read_state, write_state
from library.training.method import ParamGroup
from library.training.optimization.lr_schedules import make_lr_schedule
from library.training.optimization.optimizer_state import load_exactly, schedulefree_eval, start_training
from library.training.optimization.optimizer_table import OPTIMIZERS, LRSupport
from library.training.optimization.optimizers import make_optimizer, optimizer_findings, optimizer_label, rate_findings
from library.training.optimization.options import OptimizerOptions
from library.training.step_plan import Position

# rates that suit the small problem below; the others learn at 0.02, those that find their step size at 1
RATES = {"SGDNesterov": 0.1, "SGDNesterov8bit": 0.1, "SGDScheduleFree": 1.0, "SGD": 1.0, "ASGD": 1.0, "Adadelta": 1.0}
RATES["DAdaptSGD"] = 0.3  # at 1 its first estimate is too large for a parabola
OF_TORCH = ["Adam", "NAdam", "Adagrad", "RMSprop", "Adamax", "RAdam", "Rprop", "SGD", "ASGD", "Adadelta"]
BY_PATH = ["torch.optim.adamw.AdamW", "bitsandbytes.optim.Adam8bit", "schedulefree.AdamWScheduleFreeReference"]


class Fit:
    """Least squares with one matrix of 4,096 numbers, which 8-bit optimizers keep in 8 bits, and one bias."""

    def __init__(self, name: str, *arguments: str, dtype: torch.dtype = torch.float32):
        draws = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(96, 64, generator=draws)
        self.wanted = torch.randn(96, 64, generator=draws) * 3
        first = [torch.randn(64, 64, generator=draws) * 0.1, torch.ones(64)]
        self.params = [torch.nn.Parameter(value.to(dtype)) for value in first]
        known = OPTIMIZERS.get(name)
        rate = RATES.get(name, 1.0 if known is not None and known.adapts else 0.02)
        options = OptimizerOptions(optimizer_type=name, optimizer_args=arguments, learning_rate=rate)
        report(optimizer_findings(options))
        groups = [ParamGroup("matrix", self.params[:1], rate), ParamGroup("bias", self.params[1:], rate)]
        self.optimizer = make_optimizer(options, groups)
        self.schedule = make_lr_schedule(self.optimizer, options, 100)

    def loss(self) -> torch.Tensor:
        return ((self.inputs @ self.params[0].float() + self.params[1].float() - self.wanted) ** 2).mean()

    def steps(self, count: int) -> None:
        start_training(self.optimizer)
        for _ in range(count):
            self.loss().backward()
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)

    def save(self, folder) -> None:
        weights = {str(index): param.data for index, param in enumerate(self.params)}
        training = {"optimizer": self.optimizer.state_dict(), "lr_schedule": self.schedule.state_dict()}
        write_state(folder, Position(), RunIdentity(seed=1, num_micro_batches=1, group_size=1), weights, training)

    def resume(self, folder) -> None:
        weights, training = read_state(str(folder))
        for index, param in enumerate(self.params):
            param.data.copy_(weights[str(index)])
        load_exactly(self.optimizer, training["optimizer"])
        self.schedule.load_state_dict(training["lr_schedule"])


@pytest.mark.parametrize("name", [*OPTIMIZERS, *OF_TORCH, *BY_PATH])
def test_it_lowers_the_loss_and_goes_on_from_a_state_bit_for_bit(tmp_path, name):
    through = Fit(name)
    before = through.loss().item()
    through.steps(90)  # D-Adaptation needs some seventy to find its step size
    through.save(tmp_path / "state")
    with schedulefree_eval(through.optimizer):
        learned = through.loss().item()
    assert learned < 0.9 * before
    through.steps(3)
    resumed = Fit(name)
    resumed.resume(tmp_path / "state")
    resumed.steps(3)
    for expected, param in zip(through.params, resumed.params, strict=True):
        assert torch.equal(expected, param)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("AdaFactor", ("beta1=0.9",)), ("AdamW8bit", ()), ("PagedLion8bit", ()), ("RAdamScheduleFree", ())],
)
def test_half_precision_weights_lose_nothing_of_the_state(tmp_path, name, arguments):
    """AdaFactor and 8-bit states keep float32 beside weights of 16 bits; they must not be rounded to 16 when loaded."""
    through = Fit(name, *arguments, dtype=torch.bfloat16)
    through.steps(5)
    through.save(tmp_path / "state")
    resumed = Fit(name, *arguments, dtype=torch.bfloat16)
    resumed.resume(tmp_path / "state")
    for expected, param in zip(through.params, resumed.params, strict=True):
        for key, value in through.optimizer.state[expected].items():
            loaded = resumed.optimizer.state[param][key]
            if isinstance(value, torch.Tensor):
                assert loaded.dtype == value.dtype and torch.equal(loaded, value), key
    through.steps(5)
    resumed.steps(5)
    assert all(torch.equal(left, right) for left, right in zip(through.params, resumed.params, strict=True))


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "Lion8bit", "PagedLion8bit", "SGDNesterov8bit"])
def test_the_state_is_really_kept_in_8_bits(name):
    fit = Fit(name)
    fit.steps(1)
    assert fit.optimizer.state[fit.params[0]]["state1"].dtype == torch.uint8


@pytest.mark.parametrize("name", ["PagedAdamW8bit", "PagedLion8bit"])
def test_paged_states_are_paged_again_after_a_resume(name, monkeypatch):
    """On the CPU bitsandbytes pages nothing: here its buffers are marked as it marks the paged ones on a GPU."""
    fit = Fit(name)
    fit.steps(2)
    saved, resumed = fit.optimizer.state_dict(), Fit(name)
    kind, paged = type(resumed.optimizer), []
    make = kind.get_state_buffer

    def paged_buffer(optimizer, param, dtype):
        buffer = make(optimizer, param, dtype=dtype)
        buffer.is_paged = True
        paged.append(buffer)
        return buffer

    monkeypatch.setattr(kind, "get_state_buffer", paged_buffer)
    load_exactly(resumed.optimizer, saved)
    for param, source in zip(resumed.params, fit.params, strict=True):
        for key in {"state1", "state2"} & resumed.optimizer.state[param].keys():
            state = resumed.optimizer.state[param][key]
            assert any(state is each for each in paged)
            assert torch.equal(state, fit.optimizer.state[source][key])


def stepped(name, arguments, weight, gradients, rate=0.1):
    """A parameter after one step for each gradient."""
    param = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    options = OptimizerOptions(optimizer_type=name, optimizer_args=arguments, learning_rate=rate)
    optimizer = make_optimizer(options, [ParamGroup("all", [param], rate)])
    for gradient in gradients:
        param.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return param.detach().numpy()


WEIGHT = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])
GRADIENTS = [np.array([[0.1, -0.4, 0.3], [0.2, 0.7, -0.6]]), np.array([[-0.5, 0.2, 0.1], [0.4, -0.3, 0.8]])]


def test_adamw_follows_its_paper():
    """Loshchilov and Hutter, 1711.05101, algorithm 2, with the weight decay scaled by the rate as PyTorch has it."""
    weight, mean, square = WEIGHT.copy(), 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, start=1):
        weight = weight * (1 - 0.1 * 0.3)
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        weight = weight - 0.1 * (mean / (1 - 0.8**step)) / (np.sqrt(square / (1 - 0.95**step)) + 1e-6)
    found = stepped("adamw", ("betas=.8,.95", "eps=1e-6", "weight_decay=0.3"), WEIGHT, GRADIENTS)
    assert found == pytest.approx(weight, rel=1e-12)


def test_lion_follows_its_paper():
    """Chen et al., 2302.06675, algorithm 2."""
    weight, mean = WEIGHT.copy(), 0.0
    for gradient in GRADIENTS:
        update = np.sign(0.7 * mean + 0.3 * gradient)
        weight = weight - 0.1 * (update + 0.3 * weight)
        mean = 0.8 * mean + 0.2 * gradient
    assert stepped("Lion", ("betas=.7,.8", "weight_decay=.3"), WEIGHT, GRADIENTS) == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize(("arguments", "momentum"), [((), 0.9), (("momentum=0.5",), 0.5)])
def test_sgdnesterov_has_nesterovs_momentum_without_being_told(arguments, momentum):
    """Sutskever et al. 2013, in PyTorch's form: the first velocity is the gradient."""
    weight, velocity = WEIGHT.copy(), 0.0
    for gradient in GRADIENTS:
        velocity = momentum * velocity + gradient
        weight = weight - 0.1 * (gradient + momentum * velocity)
    assert stepped("SGDNesterov", arguments, WEIGHT, GRADIENTS) == pytest.approx(weight, rel=1e-12)


def adafactor(weight, gradients, rate_of, scales):
    """Shazeer and Stern, 1804.04235, algorithm 4: factored second moments, clipped updates of root mean square 1."""
    rows, columns = np.zeros(2), np.zeros(3)
    for step, gradient in enumerate(gradients, start=1):
        decay = 1 - step**-0.8
        square = gradient**2 + 1e-30
        rows = decay * rows + (1 - decay) * square.mean(axis=1)
        columns = decay * columns + (1 - decay) * square.mean(axis=0)
        update = gradient / np.sqrt(np.outer(rows, columns) / rows.mean())
        update = update / max(1.0, np.sqrt((update**2).mean()))
        scale = max(1e-3, np.sqrt((weight**2).mean())) if scales else 1.0
        weight = weight - rate_of(step) * scale * update
    return weight


def test_adafactor_sets_its_own_rate_unless_told_otherwise():
    """The rate is min(0.01, 1/sqrt(step)) times the size of the weights, whatever --learning_rate is."""
    expected = adafactor(WEIGHT, GRADIENTS, lambda step: min(0.01, 1 / math.sqrt(step)), scales=True)
    for rate in (0.1, 5.0):
        assert stepped("AdaFactor", (), WEIGHT, GRADIENTS, rate) == pytest.approx(expected, rel=1e-9)


def test_the_documented_recipe_gives_adafactor_a_fixed_rate():
    recipe = ("scale_parameter=False", "relative_step=False", "warmup_init=False")
    expected = adafactor(WEIGHT, GRADIENTS, lambda step: 0.1, scales=False)
    assert stepped("adafactor", recipe, WEIGHT, GRADIENTS) == pytest.approx(expected, rel=1e-9)


def test_schedule_free_weights_to_save_are_the_average_and_training_goes_on_untouched():
    """Defazio et al., 2405.15682: z goes down the gradients taken at y, x is the mean of all z; x is the result."""
    param = torch.nn.Parameter(torch.tensor(WEIGHT, dtype=torch.float64))
    options = OptimizerOptions(optimizer_type="SGDScheduleFree", learning_rate=0.1)
    optimizer = make_optimizer(options, [ParamGroup("all", [param], 0.1)])
    start_training(optimizer)
    z, seen = WEIGHT.copy(), []
    for gradient in [*GRADIENTS, *GRADIENTS]:
        param.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        z = z - 0.1 * gradient
        seen.append(z)
    average = np.mean(seen, axis=0)
    trained = param.detach().clone()
    assert trained.numpy() == pytest.approx(0.9 * average + 0.1 * z, rel=1e-12)
    with schedulefree_eval(optimizer):
        assert param.detach().numpy() == pytest.approx(average, rel=1e-12)
    assert torch.equal(param, trained)
    optimizer.step()  # refuses unless it is in training mode again


def test_looking_at_schedule_free_weights_does_not_change_what_is_learned():
    looked_at, left_alone = Fit("AdamWScheduleFree"), Fit("AdamWScheduleFree")
    for _ in range(10):
        looked_at.steps(1)
        with schedulefree_eval(looked_at.optimizer):
            pass
    left_alone.steps(10)
    assert all(torch.equal(*pair) for pair in zip(looked_at.params, left_alone.params, strict=True))


def test_the_weights_come_back_when_a_save_fails():
    fit = Fit("AdamWScheduleFree")
    fit.steps(3)
    trained = [param.detach().clone() for param in fit.params]
    with pytest.raises(OSError, match="full"), schedulefree_eval(fit.optimizer):
        raise OSError("disk full")
    assert all(torch.equal(*pair) for pair in zip(trained, fit.params, strict=True))
    fit.steps(1)


def movement(options, rates):
    """How far each of two equal parameters comes in 30 steps downhill, or None when the optimizer refuses the rates."""
    groups = [ParamGroup(name, [torch.nn.Parameter(torch.ones(4, 4))], rate) for name, rate in rates.items()]
    optimizer = make_optimizer(options, groups)
    for _ in range(30):
        for group in groups:
            group.params[0].grad = 2 * group.params[0].detach().clone()
        try:
            optimizer.step()
        except RuntimeError:
            return None
    return [(1 - group.params[0].detach()).abs().max().item() for group in groups]


@pytest.mark.parametrize("name", [name for name, row in OPTIMIZERS.items() if row.adapts])
@pytest.mark.parametrize("other", [0.0, 0.5])
def test_an_adaptive_optimizer_has_the_first_rate_for_all_parts_and_leaves_out_those_of_rate_0(name, other, caplog):
    """The documented `--text_encoder_lr=0.5 --unet_lr=1.0` trains; a part that is to stay as it is is never trained."""
    options = OptimizerOptions(optimizer_type=name, learning_rate=1.0)
    groups = [ParamGroup("textencoder", [], 1.0), ParamGroup("unet", [], other)]
    if other == 0 and OPTIMIZERS[name].rates is LRSupport.SAME:
        for refused in (rate_findings, make_optimizer):
            with pytest.raises(UserError, match="does not support a learning rate of 0"):
                report(refused(options, groups))
        return
    report(rate_findings(options, groups))
    moved = movement(options, {"textencoder": 1.0, "unet": other})
    assert moved[0] > 0 and moved[1] == (moved[0] if other else 0)
    shown = f"1, the first of textencoder 1, unet {other:g}"
    said = f"--optimizer_type {name} uses one learning rate for all parameter groups: {shown}"
    assert caplog.messages == ([said] if other else [])


def test_other_optimizers_train_each_part_at_its_own_rate():
    """Plain SGD: the way of one step is the rate times the gradient, 2."""
    options = OptimizerOptions(optimizer_type="SGD")
    groups = [ParamGroup(name, [torch.nn.Parameter(torch.ones(1))], rate) for name, rate in (("a", 0.1), ("b", 0.2))]
    optimizer = make_optimizer(options, groups)
    for group in groups:
        group.params[0].grad = torch.full((1,), 2.0)
    optimizer.step()
    assert [1 - group.params[0].item() for group in groups] == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize(("name", "rate"), [("Prodigy", 1e-4), ("dadaptation", 2e-6), ("DAdaptLion", 100.0)])
def test_a_rate_that_suits_other_optimizers_is_warned_of(name, rate, caplog):
    """At 1e-4 Prodigy learns next to nothing for hours."""
    report(rate_findings(OptimizerOptions(optimizer_type=name), [ParamGroup("unet", [], 1.0)]))
    assert caplog.text == ""
    report(rate_findings(OptimizerOptions(optimizer_type=name), [ParamGroup("unet", [], rate)]))
    assert f"about 1.0 is usual, not unet {rate:g}" in caplog.text


def test_arguments_that_are_needed_are_added_and_said(caplog):
    param = torch.nn.Parameter(torch.zeros(2, 2))
    with caplog.at_level(logging.INFO):
        for name, arguments in (("SGDNesterov", ("momentum=0.5",)), ("adafactor", ())):
            options = OptimizerOptions(optimizer_type=name, optimizer_args=arguments)
            make_optimizer(options, [ParamGroup("all", [param], 1.0)])
    assert "SGDNesterov: nesterov=True is added" in caplog.text and "momentum" not in caplog.text
    assert "adafactor: relative_step=True is added" in caplog.text


def test_the_metadata_show_class_and_arguments_as_other_programs_do():
    param = torch.nn.Parameter(torch.zeros(2, 2))
    for options, shown in (
        (OptimizerOptions(), "torch.optim.adamw.AdamW"),
        (
            OptimizerOptions(optimizer_args=("weight_decay=0.01", "betas=.9,.99")),
            "torch.optim.adamw.AdamW(weight_decay=0.01,betas=(0.9, 0.99))",
        ),
        (OptimizerOptions(optimizer_type="sgdnesterov"), "torch.optim.sgd.SGD(momentum=0.9,nesterov=True)"),
    ):
        assert optimizer_label(make_optimizer(options, [ParamGroup("all", [param], 1.0)]), options) == shown
