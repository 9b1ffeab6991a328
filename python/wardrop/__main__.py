"""`python -m wardrop`."""

from wardrop.cli import main

main()
