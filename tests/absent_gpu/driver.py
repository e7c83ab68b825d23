"""Compiling and loading `driver.cpp`, and finding Triton, which torch's CPU build comes without."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

TRITON = Path(sys.prefix) / "triton"  # where install.sh puts it, apart: elsewhere libraries would take it for a GPU's


def load() -> None:
    """Give the torch that will be imported a CUDA device. Raises RuntimeError where torch is there already, or has
    CUDA of its own; CalledProcessError where the compiler refuses."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported already; its device is chosen then")
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise RuntimeError("torch is not installed")
    torch = Path(spec.origin).parent
    if list((torch / "lib").glob("libtorch_cuda*")):
        raise RuntimeError("this torch has CUDA of its own")
    sys.path.append(str(TRITON))
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "driver.so"
        source = Path(__file__).with_name("driver.cpp")
        places = [f"-I{torch / 'include'}", f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}"]
        command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O0", *places, str(source), "-o", str(library)]
        subprocess.run([*command, "-ltorch_cpu", "-lc10"], check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
