"""`backstop report` and `backstop status`: report a message, and see what became of the report."""

from pathlib import Path
from typing import Any

import click

from backstop.gateway import gateway_at, gateway_option, token_option
from backstop.output import json_option, print_json, printable, utc


@click.command()
@click.argument("message", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--as",
    "reported_as",
    type=click.Choice(["phishing", "junk", "malware", "not-junk"]),
    default="phishing",
    help="What the reporter takes it for.",
)
@click.option(
    "--folder", type=click.Choice(["inbox", "junk"]), help="Where it was; by default what its headers say, or inbox."
)
@click.option("--reporter", help="The mailbox that received it, when the token is an application's.")
@click.option("--block-sender", is_flag=True, help="Also block the sender for this mailbox.")
@gateway_option
@token_option("Reporter")
@json_option
def report(
    message: Path,
    reported_as: str,
    folder: str | None,
    reporter: str | None,
    block_sender: bool,
    gateway: str,
    token: str,
    as_json: bool,
) -> None:
    """
    Report a message, and print how to follow the report.

    MESSAGE is an .eml file with all its headers. The same report sent again counts once.
    """
    again, raw = "Send it again: the same report counts once.", message.read_bytes()
    with gateway_at(gateway, token, "Not reported", again) as client:
        answer = client.post(
            "/v1/reports",
            raw,
            "message/rfc822",
            reported_as=reported_as,
            folder=folder,
            reporter=reporter,
            block_sender="true" if block_sender else None,
        )
    if as_json:
        print_json(answer)
        return
    report_id = printable(str(answer["report_id"]))
    before = "This was reported before, and nothing new was saved" if answer.get("repeated") else "Reported"
    click.echo(f"{before}. Report: {report_id}")
    if block := answer.get("block"):
        click.echo(f"Block of {_block(block)}")
    click.echo(f"Follow it with: backstop status {report_id}")
    click.echo(f"Or over HTTP: GET {gateway.rstrip('/')}{printable(str(answer['status_url']))}")


@click.command()
@click.argument("report_id", type=click.UUID)
@gateway_option
@token_option("Reporter", "SecurityReader", "SecurityAdministrator")
@json_option
def status(report_id: object, gateway: str, token: str, as_json: bool) -> None:
    """Print what became of a report, and of its block."""
    with gateway_at(gateway, token, "The report could not be read") as client:
        answer = client.get(f"/v1/reports/{report_id}")
    if as_json:
        print_json(answer)
        return
    shown = {name: printable(str(answer[name])) for name in ("reporter", "reported_as", "folder", "explanation")}
    verdict = f" ({printable(answer['conclusion'])})" if answer["conclusion"] else ""
    click.echo(f"Report {report_id}: {printable(answer['status'])}{verdict}")
    click.echo(f"  {shown['explanation']}")
    click.echo(f"  Reported {utc(answer['reported_at'])} by {shown['reporter']} as {shown['reported_as']}")
    click.echo(f"  Folder: {shown['folder']}")
    if block := answer.get("block"):
        click.echo(f"  Block of {_block(block)}")


def _block(block: dict[str, Any]) -> str:
    """Describe a block of the sender and what became of it."""
    value = printable(str(block.get("value") or "the sender"))
    text = f"{value} for the mailbox: {printable(block['status'])}"
    return f"{text}. {printable(block['explanation'])}" if block.get("explanation") else text
