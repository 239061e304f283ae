"""Drivers that link a foreign library: each is a cffi module that hands the core a `struct io_queue *`."""

from __future__ import annotations


class DriverError(Exception):
    """A driver cannot do what was asked. One line: what failed and where, and how to mend it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(f"{message}; {fix}")
        self.message = message
        self.fix = fix
