"""``python -m medqa`` is the command `medqa`."""

from medqa.cli import main

main()
