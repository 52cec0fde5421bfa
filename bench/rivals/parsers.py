"""
Parse a folder of messages with one library, in its own process: `python parsers.py <library> <folder> <rounds>`.

Prints a line of JSON for each message: its name, the seconds of each round, the increase of peak memory, and the error
or the facts. Runs in any Python that has the library, so it imports nothing of Backstop except `mail`, and only for it.
"""

import argparse
import email
import email.policy
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
Parse = Callable[[Path, bytes], Facts]


def backstop() -> Parse:
    """Backstop's own parser."""
    mail = importlib.import_module("mail")

    def parse(_: Path, raw: bytes) -> Facts:
        facts = mail.parse(raw)
        return {
            "message id": facts.internet_message_id,
            "from": facts.from_address,
            "subject": facts.subject,
            "attachments": [one.sha256 for one in facts.attachments],
            "links": [_hash(url) for url in facts.urls],
        }

    return parse


def standard_library() -> Parse:
    """`email` with its default policy, each part decoded by its own methods. Extracts no links."""

    def parse(_: Path, raw: bytes) -> Facts:
        message = email.message_from_bytes(raw, policy=email.policy.default)
        attachments = []
        for part in message.walk():
            if part.is_attachment():
                attachments.append(hashlib.sha256(_bytes(part)).hexdigest())
            elif part.get_content_maintype() == "text":
                part.get_content()
        senders = getattr(message["From"], "addresses", ())
        return {
            "message id": _text(message["Message-ID"]),
            "from": senders[0].addr_spec if senders else None,
            "subject": _text(message["Subject"]),
            "attachments": attachments,
        }

    return parse


def mail_parser() -> Parse:
    """Mail-parser, with what it decodes by default. Extracts no links."""
    mailparser = importlib.import_module("mailparser")

    def parse(_: Path, raw: bytes) -> Facts:
        message = mailparser.parse_from_bytes(raw)
        senders = message.from_
        attachments = message.attachments
        message.body  # noqa: B018 - computed on access
        return {
            "message id": _text(message.message_id),
            "from": _text(senders[0][1]) if senders else None,
            "subject": _text(message.subject),
            "attachments": len(attachments),
        }

    return parse


def eml_parser() -> Parse:
    """Eml-parser with its default settings: hashes of attachments and links."""
    parser = importlib.import_module("eml_parser").EmlParser()

    def parse(_: Path, raw: bytes) -> Facts:
        found = parser.decode_email_bytes(raw)
        header = found["header"]
        return {
            "message id": _text(header["header"].get("message-id")),
            "from": _text(header.get("from")),
            "subject": _text(header.get("subject")),
            "attachments": [one["hash"]["sha256"] for one in found.get("attachment", ())],
            "links": [link for body in found["body"] for link in body.get("uri_hash", ())],
        }

    return parse


def parse_emails() -> Parse:
    """Parse-emails, which reads the file itself. Extracts no links."""
    parser = importlib.import_module("parse_emails.parse_emails").EmailParser

    def parse(file: Path, _: bytes) -> Facts:
        reading = parser(file_path=str(file))
        reading.parse()
        found = reading.parsed_email
        top = found[0] if isinstance(found, list) else found
        return {
            "message id": _text(top.get("HeadersMap", {}).get("Message-ID")),
            "from": _text(top.get("From")),
            "subject": _text(top.get("Subject")),
            "attachments": len(top.get("AttachmentsData") or ()),
        }

    return parse


LIBRARIES = {
    "Backstop": backstop,
    "standard library": standard_library,
    "mail-parser": mail_parser,
    "eml-parser": eml_parser,
    "parse-emails": parse_emails,
}


def _hash(url: str) -> str:
    return hashlib.sha256(url.lower().encode()).hexdigest()


def _bytes(part: Any) -> bytes:
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _text(value: object) -> str | None:
    first = next(iter(value), None) if isinstance(value, list) else value
    return None if first is None else str(first)


def _peak() -> int:
    """Return the peak resident size since `_forget_peak`, in bytes; 0 if the kernel does not provide it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _forget_peak() -> int:
    """Reset the peak to the current size, and return it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _peak()
    return _peak()


def measure(parse: Parse, files: list[Path], rounds: int) -> Iterator[dict[str, Any]]:
    """Parse each file in each round. The first round is not timed and yields facts, errors and memory."""
    mails = [(file, file.read_bytes()) for file in files]
    seen: dict[Path, dict[str, Any]] = {}
    for number in range(rounds + 1):
        for file, raw in mails:
            before = _forget_peak() if number == 0 else 0
            begin = time.perf_counter()
            try:
                facts, error = parse(file, raw), None
            except Exception as failure:  # noqa: BLE001 - errors are counted
                facts, error = {}, type(failure).__name__
            seconds = time.perf_counter() - begin
            if number == 0:
                seen[file] = {"error": error, "facts": facts, "memory": _peak() - before, "seconds": []}
            else:
                seen[file]["seconds"].append(seconds)
    for file, found in seen.items():
        yield {"name": str(file), **found}


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("library", choices=LIBRARIES)
    options.add_argument("folder", type=Path)
    options.add_argument("rounds", type=int)
    chosen = options.parse_args()
    everything = sorted(file for file in chosen.folder.rglob("*") if file.is_file())
    for line in measure(LIBRARIES[chosen.library](), everything, chosen.rounds):
        sys.stdout.write(json.dumps(line, default=str) + "\n")
