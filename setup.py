"""Package metadata and extras."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """The requirement lines of a file beside this one."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r"))]


setup(
    name="stable-diffusion-training-toolkit",
    version="0.1.0",
    description="Training of LoRAs, whole models and textual inversion embeddings for Stable Diffusion",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["library", "library.*", "networks", "networks.*", "finetune"]),
    py_modules=[
        "train_network",
        "train_db",
        "fine_tune",
        "train_textual_inversion",
        "train_leco",
        "sdxl_train_network",
        "sdxl_train",
        "sdxl_train_textual_inversion",
        "sdxl_train_leco",
    ],
    package_data={
        "library.models.text": ["clip_vocabulary/*"],
        "library.html_pages": ["*.css", "*.jinja"],
        "library.dataset_report": ["*.css", "*.js", "*.jinja"],
        "library.run_report": ["*.css", "*.jinja"],
    },
    install_requires=requirements("requirements.txt"),
    extras_require={
        "xformers": ["xformers"],
        "wandb": ["wandb"],
        "lycoris": ["lycoris-lora"],
        "optimizers": ["lion-pytorch>=0.2", "dadaptation>=3.2", "prodigyopt>=1.1", "schedulefree>=1.4"],
        "dev": requirements("requirements-dev.txt"),
    },
)
