"""``python train.py …`` is ``yolojax train …``."""

import sys

from yolojax.cli.main import main
from yolojax.runtime import use_huge_pages

if __name__ == "__main__":  # data workers import this file again
    use_huge_pages()
    sys.exit(main(["train", *sys.argv[1:]]))
