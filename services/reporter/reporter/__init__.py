"""Reporter: accepts users' reports of messages, each once, and shows what became of them."""
