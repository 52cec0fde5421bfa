"""
Why a malicious message was allowed, and which of the tenant's settings to change.

`RULES`, at the end, lists the causes: each row says which results and headers raise a suspicion, which settings have
to be read to confirm it, and how they show the cause. A new cause is a new row. Everything here is pure.

Settings are rows as Exchange Online's cmdlets return them. If a cmdlet could not be read, the cause is reported with a
recommendation that says where to look.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from backstop_contracts.events import Cause, Conclusion, Message
from verdict_poller import causes
from verdict_poller.exchange_settings import Query
from verdict_poller.findings import (
    BULK_WORDS,
    Evidence,
    Finding,
    Sign,
    Strength,
    advising_finding,
    is_known_threat,
    is_override,
    is_unnamed_override,
)
from verdict_poller.recommended_settings import ANTI_PHISHING, ANTI_SPAM, EOP_PRESETS
from verdict_poller.submission_result import Result, conclude

Suspicion: TypeAlias = Callable[[Result, Message], bool]
Reads: TypeAlias = Callable[[Result, Message, str], Iterable[Query]]


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One cause of Microsoft's false negatives.

    `conclusions` and `suspects` limit the rule to conclusions, results and headers before any setting is read. `find`
    returns None if the settings disprove the suspicion. A last resort applies only if no other rule explains the
    message.
    """

    id: str
    title: str
    source: str
    suspects: Suspicion
    find: Callable[[Evidence], Finding | None]
    reads: Reads = lambda _result, _message, _recipient: ()
    conclusions: frozenset[Conclusion] = frozenset({Conclusion.THREAT, Conclusion.UNKNOWN})
    last_resort: bool = False


def needed_queries(result: Result, message: Message, recipient: str) -> frozenset[Query]:
    """Return the settings that the suspected rules need to be read, and no others."""
    suspected = _suspected(result, message)
    return frozenset(query for rule in suspected for query in rule.reads(result, message, recipient))


def explain(evidence: Evidence) -> tuple[Cause, ...]:
    """
    Return why the message was allowed and what to change, strongest cause first. Never empty.

    First the causes that Microsoft's result names, then those that headers and settings show, then remarks, then
    settings below Microsoft's recommendation. A weaker cause does not repeat a change that a stronger one recommends.
    """
    found: list[tuple[Rule, Finding]] = []
    for rule in _suspected(evidence.result, evidence.message):
        if rule.last_resort and any(finding.strength < Strength.CONTRIBUTING for _, finding in found):
            continue
        if (finding := rule.find(evidence)) is not None:
            found.append((rule, finding))
    found.sort(key=lambda pair: (pair[1].strength, not pair[1].exact))
    return tuple(_causes(found))


def _suspected(result: Result, message: Message) -> Iterator[Rule]:
    conclusion = conclude(result)
    return (rule for rule in RULES if conclusion in rule.conclusions and rule.suspects(result, message))


def _causes(found: Iterable[tuple[Rule, Finding]]) -> Iterator[Cause]:
    recommended: set[tuple[str, str | None]] = set()
    for rule, finding in found:
        new = tuple(change for change in finding.recommendations if (change.setting, change.policy) not in recommended)
        recommended |= {(change.setting, change.policy) for change in new if change.setting}
        if new or finding.strength < Strength.CONTRIBUTING:
            yield Cause(
                rule=rule.id, title=rule.title, evidence=finding.evidence, recommendations=new, source=rule.source
            )


def _always_reads(*queries: Query) -> Reads:
    return lambda _result, _message, _recipient: queries


def _always_advises(strength: Strength, action: str) -> Callable[[Evidence], Finding]:
    return lambda evidence: advising_finding(evidence, strength, action)


def _always(_result: Result, _message: Message) -> bool:
    return True


_LEARN = "https://learn.microsoft.com"
_MDO = f"{_LEARN}/defender-office-365"
_RECOMMENDED = f"{_MDO}/recommended-settings-for-eop-and-office365"
_RESULTS = f"{_MDO}/submissions-result-definitions"
_THREAT = frozenset({Conclusion.THREAT})

RULES: tuple[Rule, ...] = (
    Rule(
        "R01",
        "An allow entry in the Tenant Allow/Block List let the message through",
        f"{_MDO}/tenant-allow-block-list-about",
        lambda result, message: causes.ALLOW_ENTRY.appears(result, message) or is_unnamed_override(result),
        causes.find_allow_entry,
        causes.read_allow_entry,
    ),
    Rule(
        "R02",
        "A mail flow rule made the message skip spam filtering",
        f"{_MDO}/create-safe-sender-lists-in-office-365#use-mail-flow-rules",
        causes.SKIPPED.suspects,
        causes.find_mail_flow_rule,
        _always_reads(causes.MAIL_FLOW_RULES),
    ),
    Rule(
        "R03",
        "The IP Allow List of the connection filter let the message through",
        f"{_MDO}/connection-filter-policies-configure",
        causes.ALLOWED_IP.suspects,
        causes.find_allowed_ip,
        _always_reads(causes.CONNECTION_FILTER),
    ),
    Rule(
        "R04",
        "An anti-spam policy allows the sender or its domain",
        f"{_MDO}/create-safe-sender-lists-in-office-365",
        causes.ALLOWED_SENDER.suspects,
        causes.find_allowed_sender,
        _always_reads(*ANTI_SPAM.reads),
    ),
    Rule(
        "R05",
        "The recipient's own mailbox trusts the sender",
        f"{_MDO}/configure-junk-email-settings-on-exo-mailboxes",
        causes.suspects_safe_sender,
        causes.find_safe_sender,
        causes.read_safe_sender,
    ),
    Rule(
        "R06",
        "A rule of the recipient's own mailbox kept the message out of Junk Email",
        f"{_MDO}/configure-junk-email-settings-on-exo-mailboxes",
        causes.suspects_mailbox_rule,
        causes.find_mailbox_rule,
        causes.read_mailbox_rule,
    ),
    Rule(
        "R07",
        "The recipient is a SecOps mailbox, which gets mail unfiltered",
        f"{_MDO}/advanced-delivery-policy-configure",
        causes.suspects_secops_mailbox,
        causes.find_secops_mailbox,
        _always_reads(causes.SECOPS_MAILBOXES),
    ),
    Rule(
        "R08",
        "The message is a phishing simulation",
        f"{_MDO}/advanced-delivery-policy-configure",
        causes.suspects_simulation,
        causes.find_simulation,
        causes.read_simulation,
        conclusions=frozenset({Conclusion.SIMULATION, Conclusion.UNKNOWN}),
    ),
    Rule(
        "R09",
        "Another filter is in front of Microsoft 365",
        f"{_LEARN}/exchange/mail-flow-best-practices/use-connectors-to-configure-mail-flow/"
        "enhanced-filtering-for-connectors",
        causes.OTHER_FILTER.appears,
        causes.find_other_filter,
        _always_reads(causes.INBOUND_CONNECTORS),
    ),
    Rule(
        "R10",
        "The message was released from quarantine",
        f"{_MDO}/quarantine-policies",
        causes.RELEASED.appears,
        causes.find_release,
        causes.read_release,
    ),
    Rule(
        "R11",
        "Zero-hour auto purge does not remove this kind of threat",
        f"{_MDO}/zero-hour-auto-purge",
        is_known_threat,
        causes.find_zap,
        causes.read_zap,
    ),
    Rule(
        "R12",
        "The policy's action is weaker than Microsoft recommends",
        _RECOMMENDED,
        is_known_threat,
        causes.find_weak_action,
        _always_reads(*ANTI_SPAM.reads),
    ),
    Rule(
        "R13",
        "A spoofed sender was tolerated",
        f"{_MDO}/anti-phishing-protection-spoofing-about",
        causes.suspects_spoof,
        causes.find_spoof,
        _always_reads(causes.SPOOF_ALLOWS, *ANTI_PHISHING.reads),
    ),
    Rule(
        "R14",
        "Protection from impersonation is off, or trusts the sender",
        f"{_MDO}/anti-phishing-policies-about",
        causes.suspects_impersonation,
        causes.find_impersonation,
        _always_reads(*ANTI_PHISHING.reads),
    ),
    Rule(
        "R15",
        "Safe Links or Safe Attachments did not check the message as Microsoft recommends",
        _RECOMMENDED,
        causes.suspects_detonation,
        causes.find_detonation,
        causes.read_detonation,
    ),
    Rule(
        "R16",
        "Settings have drifted from Microsoft's recommendations",
        f"{_MDO}/preset-security-policies",
        is_known_threat,
        causes.find_drift,
        _always_reads(EOP_PRESETS, causes.CONFIGURATION_ANALYZER),
    ),
    Rule(
        "R18",
        "The message is bulk mail below the threshold",
        f"{_MDO}/anti-spam-bulk-complaint-level-bcl-about",
        Sign(BULK_WORDS).appears,
        causes.find_bulk,
        _always_reads(*ANTI_SPAM.reads),
    ),
    Rule(
        "R19",
        "Microsoft found no threat",
        _RESULTS,
        _always,
        _always_advises(
            Strength.STATED,
            "Mark the report as no threats found and tell the user who reported it; remove blocks made for it.",
        ),
        conclusions=frozenset({Conclusion.CLEAN}),
    ),
    Rule(
        "R20",
        "Microsoft could not analyse the message",
        _RESULTS,
        causes.suspects_no_analysis,
        causes.find_no_analysis,
        conclusions=frozenset({Conclusion.UNKNOWN}),
    ),
    Rule(
        "R21",
        "The report never reached Microsoft",
        f"{_MDO}/submissions-user-reported-messages-custom-mailbox",
        causes.NOT_SUBMITTED.appears,
        causes.find_not_submitted,
        _always_reads(causes.REPORTING_POLICY),
    ),
    Rule(
        "R22",
        "The filter's verdict was lost in on-premises Exchange",
        _RESULTS,
        causes.LOST_ON_PREMISES.appears,
        _always_advises(
            Strength.STATED,
            "Check the hybrid mail flow between on-premises Exchange and Exchange Online: compare with similar "
            "messages that were delivered directly, and fix the routing.",
        ),
    ),
    Rule(
        "R23",
        "The message was blocked, not allowed",
        _RESULTS,
        causes.is_blocked,
        _always_advises(
            Strength.STATED,
            "No setting has to change. Find out where the user saw the message: in Junk Email, in quarantine, or as a "
            "copy that was delivered before the block.",
        ),
    ),
    Rule(
        "R17",
        "The filter missed the message",
        _RESULTS,
        lambda result, _message: not is_override(result),
        causes.find_filter_miss,
        conclusions=_THREAT,
        last_resort=True,
    ),
    Rule(
        "R00",
        "Microsoft's result does not explain why the message was allowed",
        _RESULTS,
        _always,
        _always_advises(
            Strength.REMARK,
            "Open the submission on the Submissions page of the Microsoft Defender portal: it may say more.",
        ),
        conclusions=frozenset(Conclusion),
        last_resort=True,
    ),
)
"""All causes. Among equally strong ones the earlier row comes first; last resorts are at the end."""
