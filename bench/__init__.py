"""What Backstop costs, measured side by side with named alternatives: `python -m bench`."""
