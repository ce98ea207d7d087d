"""``python train.py …`` is ``yolojax train …``."""

import sys

from yolojax.cli.main import main
from yolojax.runtime import prepare_process

if __name__ == "__main__":  # data workers import this file again
    prepare_process()
    sys.exit(main(["train", *sys.argv[1:]]))
