"""`python -m verdict_poller`."""

from verdict_poller.app import main

main()
