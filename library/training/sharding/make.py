"""Makes the learner that a plan asks for; what only one kind needs is imported for it alone."""

from __future__ import annotations

import math

from accelerate import Accelerator

from library.training.method import TrainingMethod
from library.training.options import TrainingOptions
from library.training.sharding.learner import Learner, MakeOptimizer, WholeLearner
from library.training.sharding.plans import FsdpPlan, ShardingPlan, ZeroPlan


def make_learner(
    plan: ShardingPlan | None,
    accelerator: Accelerator,
    method: TrainingMethod,
    make_optimizer: MakeOptimizer,
    training: TrainingOptions,
) -> Learner:
    """Puts what the method trains over the processes. Raises `UserError` where it cannot be shared out as planned.

    Its weights are to be the same in all processes, those of a resumed run already; afterwards the learner's `groups`
    hold the parameters.
    """
    groups, modules = method.param_groups(), method.trainable_modules()
    if isinstance(plan, ZeroPlan):
        from library.training.sharding.zero import ZeroLearner

        return ZeroLearner(
            plan,
            accelerator,
            modules,
            groups,
            make_optimizer,
            accumulation=training.gradient_accumulation_steps,
            max_norm=training.max_grad_norm or math.inf,
        )
    if isinstance(plan, FsdpPlan):
        from library.training.sharding.fsdp import FsdpLearner

        return FsdpLearner(plan, accelerator, modules, groups, make_optimizer)
    return WholeLearner(accelerator, groups, make_optimizer)
