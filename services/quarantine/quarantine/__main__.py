"""`python -m quarantine`."""

from quarantine.app import main

main()
