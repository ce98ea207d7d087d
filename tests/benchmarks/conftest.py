"""The scripts in ``benchmarks/`` are no part of the package: they are found in the checkout."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))
