"""`python -m amsd`."""

from amsd.cli import main

main()
