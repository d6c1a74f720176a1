"""``python -m multiparam``: the command line."""

from multiparam.cli.app import main

main()
