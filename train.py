"""``python train.py …`` is ``yolojax train …``."""

import sys

from yolojax.cli.main import main

if __name__ == "__main__":  # data workers import this file again
    sys.exit(main(["train", *sys.argv[1:]]))
