"""`python -m triage`."""

from triage.app import main

main()
