"""Files in memory, with which a process hands settings to the program that it starts.

A command line has a limit of 128 kB for an argument, and every user of the machine can read it.
"""

from __future__ import annotations

import os


def memory_file(name: str, text: str) -> str:
    """Path of a new file in memory, for a program that inherits the descriptors of this process.

    Args:
        name: Name for tools that list descriptors.
        text: Content of the file.
    """
    descriptor = os.memfd_create(name, 0)
    with open(descriptor, "w", closefd=False, encoding="utf-8") as file:
        file.write(text)
    return f"/proc/self/fd/{descriptor}"
