"""A question to a process of its own: JAX starts there, with the environment and on the device that the question needs, and leaves with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from yolojax.errors import UserError


def ask(module: str, request: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What a module answers.

    Args:
      module: run as ``python -m``; reads the request from its standard input and prints an object per line.
      request: plain data.
      environment: variables in addition to those that are set.

    Yields:
      The objects, each as soon as it is printed.

    Raises:
      UserError: one of them is an ``error``.
      ChildProcessError: the process failed; with the last line of what it said.
    """
    with tempfile.TemporaryFile("w+") as words, tempfile.TemporaryFile("w+") as errors:
        json.dump(request, words)
        words.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, **environment},
            stdin=words,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                content = json.loads(line)
                if "error" in content:
                    raise UserError(content["error"])
                yield content
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if status:
            errors.seek(0)
            last = [line.strip() for line in errors if line.strip()][-1:]
            raise ChildProcessError(last[0] if last else f"status {status}")
