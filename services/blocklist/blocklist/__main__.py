"""`python -m blocklist`."""

from blocklist.app import main

main()
