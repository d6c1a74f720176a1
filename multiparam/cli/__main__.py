"""``python -m multiparam.cli``: the command line."""

from multiparam.cli.app import main

main()
