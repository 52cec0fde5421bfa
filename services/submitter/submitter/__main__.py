"""`python -m submitter`."""

from submitter.app import main

main()
