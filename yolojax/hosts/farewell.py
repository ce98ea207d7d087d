"""Says in a log that a process has ended without a word: killed, or ended by JAX because another one was lost.

Run as a program of its own, with the standard library alone: it reads lines from its standard input, which ends when the process does.
``log FILE`` and ``say SENTENCE`` tell where to and what; after ``end`` there is nothing to say.
"""

import signal
import sys


def main() -> None:
    """Wait for the end of the process on the other side."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal or a scheduler sends these to every process
        signal.signal(number, signal.SIG_IGN)
    file, sentence = "", ""
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "end":
            return
        if word == "log":
            file = rest
        elif word == "say":
            sentence = rest
    print(sentence, file=sys.stderr, flush=True)
    if file:
        with open(file, "a", encoding="utf-8") as log:
            log.write(sentence + "\n")


if __name__ == "__main__":
    main()
