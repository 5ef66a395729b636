"""Packaging. Tool settings are in pyproject.toml; exact tested versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "src/simcse_hf/__init__.py").read_text(encoding="utf-8")).group(1)

SENTENCE_TRANSFORMERS = ["sentence-transformers>=6.0,<7"]
TRACKING = ["tensorboard>=2.18", "trackio>=0.30"]

setup(
    name="simcse-hf",
    version=VERSION,
    description="Korean sentence embeddings: SimCSE and its family on Hugging Face Trainer",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0 AND CC0-1.0 AND CC-BY-SA-4.0",  # code, sample text, the encoder in the package
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"simcse_hf": ["py.typed", "sample/*", "sample/encoder/*", "templates/*"]},
    install_requires=[
        "torch>=2.6",
        "transformers>=5.23,<6",
        "accelerate>=1.10,<2",
        "datasets>=4.4,<6",
        "evaluate>=0.4.6",
        "huggingface_hub>=1.3,<3",
        "filelock>=3.13",
        "safetensors>=0.6",
        "scipy>=1.13",
        "numpy>=1.26",
        "pyyaml>=6",
        "tqdm>=4.66",
    ],
    extras_require={
        "st": SENTENCE_TRANSFORMERS,
        "tracking": TRACKING,
        "test": [
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.12",
            *SENTENCE_TRANSFORMERS,
            *TRACKING,
        ],
    },
    entry_points={"console_scripts": ["simcse-hf=simcse_hf.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Natural Language :: Korean",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
