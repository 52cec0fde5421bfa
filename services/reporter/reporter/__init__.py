"""Reporter: takes users' reports of mails, once each, and tells what became of them."""
