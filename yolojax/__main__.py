"""``python -m yolojax …`` is ``yolojax …``."""

import runpy

if __name__ == "__main__":
    # Data workers import the main module again, by its name; multiprocessing leaves one that is called __main__ out.
    runpy.run_module("yolojax.cli.main", run_name="__main__", alter_sys=True)
