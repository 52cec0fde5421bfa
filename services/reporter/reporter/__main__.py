"""`python -m reporter`."""

from reporter.app import main

main()
