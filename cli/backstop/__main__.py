"""`python -m backstop`."""

from backstop.app import app

app()
