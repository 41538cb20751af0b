"""A network module that fails in the third step of one process, that of the environment's FAILING_RANK."""

import os
import signal

from library.cli.errors import UserError
from networks import lora


def create_network(*args, **kwargs):
    network = lora.create_network(*args, **kwargs)
    steps = iter(range(100))

    def on_step_start():
        if next(steps) == 2 and os.environ["RANK"] == os.environ["FAILING_RANK"]:
            if os.environ.get("FAILING_BY") == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("the disk of this process is full", hint="make room")

    network.on_step_start = on_step_start
    return network


create_network_from_weights = lora.create_network_from_weights
