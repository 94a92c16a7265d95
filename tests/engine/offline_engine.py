"""A program that runs `sglang.Engine`, and answers what a test asks of it.

    python offline_engine.py ADDRESS ARGUMENTS

ARGUMENTS is what the engine is given, in JSON. The test listens at ADDRESS; it sends the keyword arguments of each
`generate`, and hangs up when it wants no more.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from multiprocessing.connection import Client

import sglang


def main() -> None:
    """Connect, start the engine, and answer."""
    address, arguments = sys.argv[1:]
    with Client(address) as connection:
        engine = sglang.Engine(**json.loads(arguments))
        with suppress(EOFError):
            connection.send("ready")
            while True:
                connection.send(engine.generate(**connection.recv()))
        engine.shutdown()


if __name__ == "__main__":  # a process of the engine's that is spawned imports this file
    main()
