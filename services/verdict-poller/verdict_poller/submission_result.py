"""
Microsoft's result of a submission as data: read tolerantly, without ever raising.

The words are those of the Microsoft Graph beta enumerations `submissionResultCategory`, `submissionResultDetail` and
`longRunningOperationStatus`. Their meaning follows Microsoft Learn, "Submission result definitions", and the tables of
Microsoft Graph's "submissionResult resource type", which described each detail until 2023; of details added since
then, only the names are known. An unknown word is kept as it is and means nothing known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backstop_contracts.events import Conclusion, DetectedFile

ORGANIZATION_OVERRIDES = frozenset({"allowedDueToOrganizationOverride", "allowedByPolicy"})
USER_OVERRIDES = frozenset({"allowedDueToUserOverride"})

_ANALYSING_STATUS = frozenset({"notStarted", "running"})
_ENDED_STATUS = frozenset({"failed", "skipped"})
_ANALYSING = frozenset({"beingAnalyzed", "underInvestigation", "willNotifyOnceDone"})
_BLOCKING = frozenset({"blockedByPolicy", "blockedDueToOrganizationOverride", "blockedDueToUserOverride"})
_DELIVERED = frozenset({"junkMailRuleDisabled", "quarantineReleased"})

_VERDICTS: Mapping[Conclusion, frozenset[str]] = {
    Conclusion.THREAT: frozenset(
        {
            "brandImpersonation",
            "bulk",
            "domainImpersonation",
            "malware",
            "phishing",
            "spam",
            "spoof",
            "spoofedAllowed",
            "spoofedBlocked",
            "threatsFound",
            "userImpersonation",
        }
    ),
    Conclusion.CLEAN: frozenset({"notJunk", "noThreatsFound"}),
    Conclusion.SIMULATION: frozenset({"phishingSimulation"}),
}

_DETAILS: Mapping[Conclusion, frozenset[str]] = {
    Conclusion.THREAT: frozenset(
        {
            "associatedWithBrand",
            "badReclassifiedAsBad",
            "badReclassifiedAsBulk",
            "brandImpersonation",
            "domainImpersonation",
            "domainResembledYourOrganization",
            "endUserBeingImpersonated",
            "endUserBeingSpoofed",
            "goodReclassifiedAsBad",
            "goodReclassifiedAsBulk",
            "itemFoundBulk",
            "itemFoundMalicious",
            "itemFoundSpam",
            "outboundBulk",
            "outboundShouldBeBlocked",
            "spoofBlocked",
            "urlFileShouldBeBlocked",
            "userImpersonation",
            "zeroHourAutoPurgeBlocked",
            "zeroHourAutoPurgeQuarantineReleased",
        }
    ),
    Conclusion.CLEAN: frozenset(
        {
            "badReclassifiedAsGood",
            "goodReclassifiedAsGood",
            "itemFoundClean",
            "outboundShouldNotBeBlocked",
            "urlFileShouldNotBeBlocked",
            "zeroHourAutoPurgeAllowed",
        }
    ),
    Conclusion.SIMULATION: frozenset({"simulatedThreat", "partOfEducationCampaign"}),
}


@dataclass(frozen=True, slots=True)
class Result:
    """Microsoft's result for one submission, in Microsoft's own words. An absent word is an empty string."""

    graph_id: str
    status: str
    verdict: str
    detail: str | None
    user_mailbox_settings: tuple[str, ...]
    detected_urls: tuple[str, ...]
    detected_files: tuple[DetectedFile, ...]
    simulation: bool


def read_result(entity: Mapping[str, Any]) -> Result:
    """
    Read an `emailThreatSubmission` as Microsoft Graph sent it. Never raises.

    Null and values of an unexpected type count as absent. `userMailboxSetting` is a flags enumeration, which Graph
    sends as one comma-separated string; a list is accepted as well.
    """
    result = entity.get("result")
    fields: Mapping[str, Any] = result if isinstance(result, Mapping) else {}
    files = (_detected_file(file) for file in _items(fields.get("detectedFiles")))
    return Result(
        graph_id=_word(entity.get("id")),
        status=_word(entity.get("status")),
        verdict=_word(fields.get("category")),
        detail=_word(fields.get("detail")) or None,
        user_mailbox_settings=_flags(fields.get("userMailboxSetting")),
        detected_urls=tuple(filter(None, map(_word, _items(fields.get("detectedUrls"))))),
        detected_files=tuple(file for file in files if file is not None),
        simulation=bool(entity.get("attackSimulationInfo")),
    )


def is_final(result: Result) -> bool:
    """
    Return True if Microsoft will not change the result any more.

    A submission that Microsoft gave up (`failed`, `skipped`) is final and has no result. One that `succeeded` but has
    no verdict yet is not final: waiting costs little, and a verdict that arrives a minute later would be lost.
    """
    if result.status in _ENDED_STATUS:
        return True
    if result.status in _ANALYSING_STATUS or result.verdict in _ANALYSING or result.detail in _ANALYSING:
        return False
    return result.verdict != ""


def conclude(result: Result) -> Conclusion:
    """
    Reduce Microsoft's verdict to a conclusion. A simulation is one whatever else the result says.

    For a message that a setting allowed or blocked, Microsoft reports only that (Microsoft Learn, "Submission result
    definitions"), so it is unknown whether the message is a threat: see `override_of`. The detail decides only where
    the verdict leaves it open.
    """
    if result.simulation or _look_up(_DETAILS, result.detail) is Conclusion.SIMULATION:
        return Conclusion.SIMULATION
    by_verdict = _look_up(_VERDICTS, result.verdict)
    return by_verdict if by_verdict is not Conclusion.UNKNOWN else _look_up(_DETAILS, result.detail)


def override_of(result: Result) -> str | None:
    """Return `allowed` or `blocked` if Microsoft reports only that a setting did so, otherwise None."""
    if conclude(result) is not Conclusion.UNKNOWN:
        return None
    detail = result.detail or ""
    if result.verdict in ORGANIZATION_OVERRIDES | USER_OVERRIDES:
        return "allowed"
    if result.verdict in _BLOCKING or detail.startswith("blocked") or detail == "quarantineReleasedThenBlocked":
        return "blocked"
    return "allowed" if detail.startswith("allowed") or detail in _DELIVERED else None


def _look_up(table: Mapping[Conclusion, frozenset[str]], word: str | None) -> Conclusion:
    return next((conclusion for conclusion, words in table.items() if word in words), Conclusion.UNKNOWN)


def _word(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else ()


def _flags(value: object) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else _items(value)
    flags = dict.fromkeys(map(_word, words))
    return tuple(flag for flag in flags if flag not in {"", "none"})


def _detected_file(value: object) -> DetectedFile | None:
    if not isinstance(value, Mapping):
        return None
    file = DetectedFile(name=_word(value.get("fileName")) or None, sha256=_word(value.get("fileHash")) or None)
    return file if file.name or file.sha256 else None
