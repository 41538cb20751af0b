"""The curves of a run: what trackers are given, under the names that dashboards know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from library.training.evaluation.sample_files import SampleFacts
from library.training.loop.run_page import RunPage
from library.training.loop.step import Step
from library.training.method import TrainingMethod
from library.training.monitoring.performance import peak_memory
from library.training.monitoring.trackers import Tracker


class Curves:
    """Losses, learning rates, norms, speed and memory of the steps; validation losses; sample images."""

    def __init__(
        self, tracker: Tracker | None, step: Step, method: TrainingMethod, device: torch.device, page: RunPage
    ):
        """`tracker`: of the first process."""
        self._tracker = tracker
        self._page = page
        self._step = step
        self._method = method
        self._device = device
        self.average: float | None = None  # loss of the last epoch's steps
        self.best: tuple[float, int] | None = None  # the lowest validation loss, and its step

    def log(self) -> None:
        """Hands on what there is since the last call; waits for the device once."""
        last = None
        for logged in self._step.logged():
            last, self.average = logged.step, logged.average
            curves = {"loss/current": logged.loss, "loss/average": logged.average, **logged.rates, **logged.norms}
            self._scalars(curves, logged.step)
            self._page.add_step(logged)
        times = self._step.times.take()
        if last is not None and self._tracker is not None:
            memory = {"perf/peak_memory_gib": peak_memory(self._device)}
            self._scalars({**times, **memory, **self._method.curves()}, last)

    def end_epoch(self, step: int) -> None:
        """The mean loss of an epoch that ends with `step`."""
        self.log()
        self._page.end_epoch(step)
        if self.average is not None:
            self._scalars({"loss/epoch_average": self.average}, step)

    def validation(self, losses: Mapping[str, float], step: int, *, at_epoch_end: bool) -> None:
        """`losses`: `loss/validation` and those of single timesteps. The mean has the name of its occasion, too."""
        mean = losses["loss/validation"]
        self._page.add_validation(mean, step)
        if self.best is None or mean < self.best[0]:
            self.best = mean, step
        occasion = "epoch" if at_epoch_end else "step"
        self._scalars({**losses, f"loss/validation/{occasion}_average": mean}, step)

    def images(self, drawn: Sequence[tuple[SampleFacts, Image.Image]], step: int) -> None:
        for facts, image in drawn:
            if self._tracker is not None:
                self._tracker.image(f"sample/{facts.prompt.index:02d}", image, step, facts.prompt.prompt)

    @property
    def found_at(self) -> str | None:
        """Where they are; None without a tracker."""
        return None if self._tracker is None else self._tracker.found_at

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.close()

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._tracker is not None:
            self._tracker.scalars(values, step)
