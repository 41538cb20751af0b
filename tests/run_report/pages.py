"""Pages of runs that never were, with one of everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from library.run_report.page import report_environment, run_page
from library.run_report.record import (
    PAGE_ENDING,
    Ending,
    Group,
    Phase,
    RunRecord,
    SampleRow,
    Save,
    SavedFile,
    Session,
    write_text,
)
from library.run_report.thumbnails import SampleGrid, Thumbnails

HOSTILE = "</script><script>document.title='owned'</script> \"' onload=x <img src=http://evil.example/x.png> &lt;"


def make_record(name: str, num_steps: int = 40, **changes) -> RunRecord:
    steps = range(1, num_steps + 1)
    record = RunRecord(
        name=name,
        program="train_network.py",
        command=f"python train_network.py --output_name {name}",
        seed=7,
        num_steps=num_steps,
        started_at=1_700_000_000.0,
        updated_at=1_700_000_600.0,
        step=num_steps,
        ending=Ending("finished"),
        facts=[Group("Model", [("base model", HOSTILE)])],
        options={"learning_rate": 1e-4, "network_dim": 8, "network_args": ["conv_dim=4"]},
        curves={
            "loss": [(step, 0.1 + step % 5 / 100) for step in steps],
            "smoothed loss": [(step, 0.2 - step / num_steps / 10) for step in steps],
            "validation loss": [
                (num_steps // 4 * part, value) for part, value in enumerate((0.3, 0.2, 0.15, 0.18, 0.25))
            ],
            "lr/unet": [(step, 1e-4) for step in steps],
        },
        epoch_ends=[num_steps // 2, num_steps],
        saves=[Save(num_steps // 2, f"{name}-000001.safetensors"), Save(num_steps, f"{name}.safetensors")],
        skipped=[(3, f"step 3: the loss is not finite, with the images {HOSTILE}")],
        num_skipped=1,
        warnings=[HOSTILE],
        phases=[Phase("steps", 590.0, 1.25)],
        sessions=[Session(0, 10, 60.0, "stopped")],
        files=[
            SavedFile(f"{name}-000001.safetensors", 1_500_000, "ab" * 32, 1),
            SavedFile(f"{name}.safetensors", 1_500_000, None, 2),
        ],
    )
    for key, value in changes.items():
        setattr(record, key, value)
    return record


def write_page(folder: Path, record: RunRecord, prompts=("a fox", HOSTILE), rounds=3) -> Path:
    """Writes a page and its sample images, of one colour for each prompt and round; gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for row in range(len(prompts)):
        for number in range(rounds):
            step = number * record.num_steps // max(1, rounds - 1)
            files[row, step] = folder / f"{row}-{step}.png"
            colour = np.full((16, 16, 3), (40 * row, 80 * number, 200), dtype=np.uint8)
            Image.fromarray(colour).save(files[row, step])
    rows = [SampleRow(prompt, "blurry", "512x512, 30 steps, CFG 7.5") for prompt in prompts]
    titles = sorted({step for _, step in files})
    grid = Thumbnails().shown(SampleGrid(rows, [(step, f"step {step}") for step in titles], files))
    record.samples, record.rounds = list(grid.rows), list(grid.rounds)
    path = folder / f"{record.name}{PAGE_ENDING}"
    write_text(path, run_page(record, grid, report_environment()))
    return path
