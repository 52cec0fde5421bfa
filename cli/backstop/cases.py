"""`backstop cases`: list cases, read one, and decide on it, as an admin does."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from backstop.gateway import Gateway, gateway_at, gateway_option, token_option
from backstop.output import cell, json_lines_option, json_option, print_json, print_rows, printable, utc

TITLES = ("CASE", "STATUS", "REPORTS", "REPORTED AS", "OPENED", "CONCLUSION", "FROM", "SUBJECT")
PAGE = 200

reader_option = token_option("SecurityReader", "SecurityAdministrator")


@click.group()
def cases() -> None:
    """List cases, read one, and decide on it."""


@cases.command("list")
@click.option("--status", type=click.Choice(["open", "submitted", "resolved", "dismissed"]), help="Only these.")
@click.option("--sender", help="Only those of this sender's address.")
@click.option("--sender-domain", help="Only those whose sender is of this domain.")
@click.option("--limit", type=click.IntRange(min=1), default=50, help="Most cases to print.")
@gateway_option
@reader_option
@json_lines_option
def list_cases(
    status: str | None,
    sender: str | None,
    sender_domain: str | None,
    limit: int,
    gateway: str,
    token: str,
    as_json: bool,
) -> None:
    """List cases, newest first."""
    with gateway_at(gateway, token, "The cases could not be listed") as client:
        found = list(_pages(client, limit, status=status, sender=sender, sender_domain=sender_domain))
    if as_json:
        for case in found:
            print_json(case)
    elif found:
        print_rows([TITLES, *map(_row, found)], [])
    else:
        click.echo("No cases.")


def _pages(client: Gateway, limit: int, **filters: str | None) -> Iterator[dict[str, Any]]:
    cursor = None
    while limit > 0:
        page = client.get("/v1/cases", **filters, cursor=cursor, limit=min(limit, PAGE))
        yield from page["items"]
        limit -= len(page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    return (
        cell(case["case_id"]),
        cell(case["status"]),
        cell(case["report_count"]),
        cell(", ".join(case["reported_as"])),
        utc(case["opened_at"]),
        cell(case["conclusion"]),
        cell(case["sender"]),
        cell(case["subject"]),
    )


@cases.command()
@click.argument("case_id", type=click.UUID)
@gateway_option
@reader_option
@json_option
def show(case_id: object, gateway: str, token: str, as_json: bool) -> None:
    """Show a case with its verdict and its timeline."""
    with gateway_at(gateway, token, "The case could not be read") as client:
        case = client.get(f"/v1/cases/{case_id}")
    if as_json:
        print_json(case)
    else:
        _print_case(case)


@cases.command()
@click.argument("case_id", type=click.UUID)
@click.argument("action", type=click.Choice(["submit", "block", "dismiss"]))
@click.option("--as", "category", type=click.Choice(["phishing", "malware", "spam"]), help="With submit: as what.")
@click.option("--block", "kinds", multiple=True, type=click.Choice(["sender", "domain"]), help="Block it meanwhile.")
@click.option("--block-url", "urls", multiple=True, help="Block this URL, which the message contains.")
@click.option("--days", type=click.IntRange(1, 90), help="Days until the blocks end; by default 30.")
@click.option("--never-expires", is_flag=True, help="Blocks that do not end.")
@click.option("--note", help="For the timeline, up to 500 characters.")
@gateway_option
@token_option("SecurityAdministrator")
@json_option
def decide(
    case_id: object,
    action: str,
    category: str | None,
    kinds: tuple[str, ...],
    urls: tuple[str, ...],
    days: int | None,
    never_expires: bool,
    note: str | None,
    gateway: str,
    token: str,
    as_json: bool,
) -> None:
    """
    Decide on a case.

    ACTION submit: have Microsoft analyse the message, and block meanwhile what --block names. ACTION block: only block.
    ACTION dismiss: close the case, because the message is not malicious.
    """
    end: dict[str, Any] = {"never_expires": True} if never_expires else {}
    if days:
        end["expires_at"] = (datetime.now(UTC) + timedelta(days=days)).isoformat()
    blocks = [{"kind": kind, **end} for kind in kinds] + [{"kind": "url", "url": url, **end} for url in urls]
    _check(action, category, blocks=bool(blocks))
    decision = {"action": action, "category": category, "blocks": blocks or None, "note": note}
    body = json.dumps({name: value for name, value in decision.items() if value is not None}).encode()
    with gateway_at(gateway, token, "Nothing was decided", "See what the case says before you decide again.") as client:
        case = client.post(f"/v1/cases/{case_id}/decisions", body, "application/json")
    if as_json:
        print_json(case)
    else:
        click.echo("The decision was saved and will be carried out.")
        _print_case(case)


def _check(action: str, category: str | None, *, blocks: bool) -> None:
    if (action == "submit") != (category is not None):
        raise click.UsageError("Use --as with submit, and only with submit.")
    if action == "block" and not blocks:
        raise click.UsageError("Say what to block: --block sender, --block domain or --block-url.")
    if action == "dismiss" and blocks:
        raise click.UsageError("A dismissed case blocks nothing: leave --block and --block-url out.")


def _print_case(case: dict[str, Any]) -> None:
    facts = {
        "status": case["status"],
        "from": case["sender"],
        "subject": case["subject"],
        "message id": case["internet_message_id"],
        "reports": f"{case['report_count']} as {', '.join(case['reported_as'])}, in {', '.join(case['folders'])}",
        "opened": utc(case["opened_at"]),
    }
    click.echo(f"Case {cell(case['case_id'])}")
    for name, value in facts.items():
        click.echo(f"  {name:<11} {cell(value)}")
    for block in case["blocks"]:
        reason = f" ({printable(block['reason'])})" if block.get("reason") else ""
        click.echo(f"  {'block':<11} {cell(block['kind'])} {cell(block['value'])}: {cell(block['status'])}{reason}")
    if case["verdict"]:
        _print_verdict(case["verdict"])
    click.echo("  timeline")
    for entry in case["timeline"]:
        actor = entry["actor"] or {}
        by = f" by {printable(str(actor.get('name') or actor.get('id')))}" if actor else ""
        click.echo(f"    {utc(entry['at'])} {cell(entry['kind'])}{by}")


def _print_verdict(verdict: dict[str, Any]) -> None:
    click.echo(f"  {'verdict':<11} {cell(verdict['verdict'])}")
    for cause in verdict["causes"]:
        click.echo(f"    {cell(cause['rule'])} {cell(cause['title'])}")
        for advice in cause["recommendations"]:
            click.echo(f"      -> {cell(advice['action'])}")
            if advice.get("cmdlet"):
                click.echo(f"         {cell(advice['cmdlet'])}")
