"""`python -m fnat` is the command `fnat`."""

from fnat.cli.main import main

main()
