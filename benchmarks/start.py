"""From a command to its answer: `--help`, a mistake, and the first step of a training with its file saved.

    python -m benchmarks.start

The training of one step stands beside the same by PyTorch, Diffusers and Transformers alone (`bare_step.py`), imports
and loading of the model included. The commands take turns, each in a process of one thread. On a machine that does
other work, the seconds of the CPU say more than those of the clock.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.commands import BASE, Command, bare_lora_step, costs_in_turns, lora_step
from benchmarks.figures import Figure, main, ratio


def figures(num_rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        step = lora_step(BASE, Path(name))
        commands = {
            "help": Command(["train_network.py", "--help"]),
            "mistake": Command([*step.words, "--learning_rat", "1"], status=2),
            "bare": bare_lora_step(BASE, Path(name)),
            "step": step,
        }
        costs = costs_in_turns(commands, num_rounds, Path(name))
    clock = {name: tuple(cost.clock for cost in each) for name, each in costs.items()}
    cpu = {name: tuple(cost.cpu for cost in each) for name, each in costs.items()}
    return [
        Figure("--help, CPU", cpu["help"], "s"),
        Figure("--help, clock", clock["help"], "s", 0.3),
        Figure("a mistake, CPU", cpu["mistake"], "s"),
        Figure("a mistake, clock", clock["mistake"], "s", 0.3),
        Figure("one step of a LoRA, clock", clock["step"], "s"),
        ratio("its clock / bare", clock["step"], clock["bare"], 1.15),
        ratio("its CPU / bare", cpu["step"], cpu["bare"], 1.15),
    ]


if __name__ == "__main__":
    main(__doc__, figures)
