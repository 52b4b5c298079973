"""`python -m hmi` is the `hmi` command."""

from hmi.cli import main

main()
