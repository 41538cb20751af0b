"""Taggers as ONNX models: images -> the probabilities of their tags, as the model file says what it takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from library.cli.errors import UserError, first_line
from library.cli.launcher import local_rank_and_count
from library.data.ahead import num_cpus
from library.data.images.decoding import decode_image

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_INSTALL = "install it: pip install onnxruntime (or onnxruntime-gpu)"
_WHITE = 255


class Tagger:
    """A session of onnxruntime with a model of images (N, H, W, 3): BGR, 0 to 255, padded to a square with white."""

    def __init__(self, path: Path, num_tags: int, device: str | None = None):
        """Raises `UserError` for a file that is no such model, or has other than `num_tags` outputs."""
        self._path, self._num_tags = path, num_tags
        self._session = _open_session(path, device)
        (taken, *others) = self._session.get_inputs()
        shape = taken.shape
        if others or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not isinstance(shape[1], int):
            raise self._unsuitable(f"it takes {[each.shape for each in (taken, *others)]}, not (N, size, size, 3)")
        if taken.type not in _TYPES:
            raise self._unsuitable(f"it takes {taken.type}")
        self._input, self._dtype = taken.name, _TYPES[taken.type]
        self._fixed_batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
        self.size: int = shape[1]
        outputs = [each.name for each in self._session.get_outputs() if each.shape[-1] in (num_tags, None)]
        outputs += [each.name for each in self._session.get_outputs() if isinstance(each.shape[-1], str)]
        if not outputs:
            shapes = [each.shape for each in self._session.get_outputs()]
            raise self._unsuitable(f"it gives {shapes}, but its list has {num_tags} tags")
        self._output = outputs[0]

    def load(self, path: str) -> np.ndarray:
        """An image as the model takes it: (size, size, 3). Raises `UserError` if it cannot be read."""
        return to_input(decode_image(path), self.size).astype(self._dtype)

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(B, number of tags) of B images; a model with a fixed batch size gets them in batches of that size."""
        step = self._fixed_batch or len(images)
        found = np.concatenate([self._run(images[start : start + step]) for start in range(0, len(images), step)])
        if found.shape != (len(images), self._num_tags):
            raise self._unsuitable(f"it gives {found.shape[1:]} for an image, but its list has {self._num_tags} tags")
        if not (np.isfinite(found).all() and found.min() >= -1e-3 and found.max() <= 1 + 1e-3):
            raise self._unsuitable(f"its output, from {found.min():.3g} to {found.max():.3g}, are no probabilities")
        return found

    def _run(self, images: Sequence[np.ndarray]) -> np.ndarray:
        batch = np.stack(images)
        if self._fixed_batch is not None and len(images) < self._fixed_batch:
            padding = np.zeros((self._fixed_batch - len(images), *batch.shape[1:]), batch.dtype)
            batch = np.concatenate([batch, padding])
        try:
            (found,) = self._session.run([self._output], {self._input: batch})
        except _errors() as error:
            raise UserError(
                f"tagger {self._path} fails on {len(images)} images: {first_line(error)}",
                hint="lower --batch_size if memory is short; --device cpu does without the GPU",
            ) from error
        return found[: len(images)].astype(np.float32)

    def _unsuitable(self, reason: str) -> UserError:
        return UserError(
            f"{self._path} is not a tagger of this kind: {reason}",
            hint="give one of the publisher's taggers with the selected_tags.csv that belongs to it",
        )


def to_input(image: np.ndarray, size: int) -> np.ndarray:
    """RGB (H, W, 3) of any size -> BGR (size, size, 3), in the middle of a white square."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), _WHITE, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    if side != size:
        # as in training: area averaging does not alias, Lanczos is the sharpest
        square = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LANCZOS4)
    return square[:, :, ::-1]


def _open_session(path: Path, device: str | None) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    local_rank, num_local = local_rank_and_count()
    settings.intra_op_num_threads = max(1, num_cpus() // num_local)
    # waiting threads would take their core from those that decode images
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 4  # what it cannot do is raised
    try:
        return onnxruntime.InferenceSession(path, settings, providers=_providers(device, local_rank))
    except _errors() as error:
        raise UserError(
            f"tagger {path} cannot be read: {first_line(error)}", hint="download it again, with --force_download"
        ) from error


def _providers(device: str | None, local_rank: int) -> list[Any]:
    import onnxruntime

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    kind, _, number = (device or "").partition(":")
    if kind == "cuda" and not has_cuda:
        raise UserError(
            f"--device {device}: this onnxruntime runs on the CPU only",
            hint="pip uninstall onnxruntime, then: pip install onnxruntime-gpu",
        )
    if kind not in ("", "cuda", "cpu"):
        raise UserError(f"--device {device}: taggers run on cpu or cuda", hint="give one of these, or leave it out")
    if kind == "cpu" or not has_cuda:
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": int(number or local_rank)}), "CPUExecutionProvider"]


def check_onnxruntime() -> None:
    """Raises `UserError` where onnxruntime is not installed."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"taggers need the package onnxruntime: {first_line(error)}", hint=_INSTALL) from error


def _errors() -> tuple[type[Exception], ...]:
    """The exceptions of onnxruntime, which have no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile", "NotImplemented")
    return (*(getattr(state, name) for name in (*names, "RuntimeException", "EPFail")), RuntimeError)
