"""`backstop explain`: what a message's own headers say, without asking anybody."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backstop.output import cell, fail, json_option, utc

if TYPE_CHECKING:
    from mail import MailFacts

AUTHENTICATION = ("spf", "dkim", "dmarc", "compauth")
MISSING = "`backstop explain` needs an extra that is not installed. Run: pip install 'backstop-cli[explain]'"


@click.command()
@click.argument("message", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def explain(message: Path, as_json: bool) -> None:
    """
    Print what a message's own headers say.

    MESSAGE is an .eml file with all its headers. Printed are who sent it, how its authentication went, what the filter
    decided, where it was delivered, its links, and its attachments with their hashes. Nothing leaves this machine.

    Only the topmost headers are read: the receiving organization adds them. In a message not exported from one of its
    mailboxes, the sender may have forged them. Why Microsoft allowed a message is in its verdict: see `backstop cases
    show`.
    """
    try:
        from mail import parse  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name != "mail":
            raise
        fail(MISSING)
    facts = parse(message.read_bytes())
    if not facts.is_mail:
        fail(f"{message} is not a message: it does not begin with headers. Save it as .eml, with all its headers.")
    if as_json:
        import json  # noqa: PLC0415 - only here

        click.echo(json.dumps(asdict(facts), default=str))
    else:
        _print(facts)


def _print(facts: "MailFacts") -> None:
    name = f"{facts.from_name} " if facts.from_name else ""
    spam = facts.antispam
    lines: dict[str, Any] = {
        "from": f"{name}<{facts.from_address}>" if facts.from_address else None,
        "envelope from": facts.envelope_sender,
        "reply to": facts.reply_to,
        "to": ", ".join(facts.recipients),
        "delivered to": facts.delivered_to,
        "subject": facts.subject,
        "sent": utc(facts.date),
        "received": utc(facts.received_at),
        "message id": facts.internet_message_id,
        "network id": facts.network_message_id,
        "sender IP": facts.sender_ip,
        "authentication": ", ".join(
            f"{method} {result}" for method in AUTHENTICATION if (result := getattr(facts.authentication, method))
        ),
        "filter": ", ".join(
            f"{word} {value}"
            for word, value in (("SCL", spam.scl), ("BCL", spam.bcl), ("SFV", spam.sfv), ("CAT", spam.cat))
            if value is not None
        ),
        "folder": facts.delivery_folder,
        "sha256": facts.sha256,
    }
    for title, value in lines.items():
        click.echo(f"{title:<14} {cell(value)}")
    click.echo(f"{'links':<14} {len(facts.urls)}")
    for url in facts.urls:
        click.echo(f"  {cell(url)}")
    click.echo(f"{'attachments':<14} {len(facts.attachments)}")
    for file in facts.attachments:
        click.echo(f"  {cell(file.name)}, {cell(file.content_type)}, {file.size} bytes, SHA-256 {file.sha256}")
    if facts.defects:
        click.echo(f"{'defects':<14} {', '.join(facts.defects)}")
