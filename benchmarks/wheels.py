"""A folder of wheels for a machine that has JAX for its accelerator, but not all that this project needs, and no way to fetch it.

    python benchmarks/wheels.py FOLDER --python 3.12
    tar -cf wheels.tar FOLDER benchmarks                                                # what to carry to the machine

    python -m pip install --no-index --no-deps --target site FOLDER/*.whl              # there
    PYTHONPATH=site python -m benchmarks.accelerator --minutes 8

Expected there: JAX with its plugin, flax, optax, orbax-checkpoint, OpenCV, matplotlib, rich, PyYAML, Pillow; PyTorch for the original's part.
tensorflow-datasets is left out: only data sets named ``tfds:`` need it. The project's wheel brings the embedded weights and data.
"""

import argparse
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    "grain",
    "array-record",
    "cloudpickle",
    "portpicker",
    "importlib-resources",
    "psutil",
    "packaging",
    "flatbuffers",
    "nvidia-ml-py",
)
# pip takes a tag as it is written, so that older ones are named too.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LIMIT = 60_000_000  # bytes


def main() -> None:
    """Fetch the wheels, make that of this checkout, and say what they weigh."""
    parser = argparse.ArgumentParser(description="Wheels for a machine that can fetch nothing.")
    parser.add_argument("folder", type=Path, help="is made where it does not exist")
    parser.add_argument("--python", default="3.12", help="version of that machine (default: %(default)s)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    fetch = [
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--implementation",
        "cp",
        "--python-version",
        options.python,
    ]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run([*pip, *fetch, *platforms, "--dest", str(options.folder), *PACKAGES], check=True)
    checkout = Path(__file__).resolve().parents[1]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(options.folder), str(checkout)], check=True)
    wheels = sorted(options.folder.glob("*.whl"))
    for file in wheels:
        print(f"{file.stat().st_size / 1e6:6.1f} MB  {file.name}")
    weight = sum(file.stat().st_size for file in wheels)
    print(f"{weight / 1e6:6.1f} MB")
    if weight > LIMIT:
        sys.exit(
            f"{options.folder}: {weight / 1e6:.0f} MB, more than the {LIMIT / 1e6:.0f} MB that are meant to be carried"
        )


if __name__ == "__main__":
    main()
