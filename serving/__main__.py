"""`python -m serving` is `tidegate`."""

from serving.cli import main

main()
