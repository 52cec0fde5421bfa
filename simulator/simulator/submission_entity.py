"""
A submission as Microsoft Graph answers it.

Shapes follow Microsoft Learn, "emailThreatSubmission resource type" and "submissionResult resource type".
"""

from typing import Any

from simulator.calls import Call
from simulator.graph_calls import stamp
from simulator.submissions import Submission

# The members that Graph names without being asked for the unknown ones.
EARLY_CATEGORIES = frozenset(
    [
        "notJunk",
        "spam",
        "phishing",
        "malware",
        "allowedByPolicy",
        "blockedByPolicy",
        "spoof",
        "unknown",
        "noResultAvailable",
    ]
)
LATE_DETAILS = frozenset(
    [
        "willNotifyOnceDone",
        "checkUserReportedSettings",
        "partOfEducationCampaign",
        "allowedByAdvancedDelivery",
        "allowedByEnhancedFiltering",
        "itemDeleted",
        "itemFoundClean",
        "itemFoundMalicious",
        "unableToMakeDecision",
        "domainResembledYourOrganization",
        "endUserBeingImpersonated",
        "associatedWithBrand",
        "senderFailedAuthentication",
        "endUserBeingSpoofed",
        "itemFoundBulk",
        "itemNotReceivedByService",
        "itemFoundSpam",
    ]
)


def _wants_all_members(call: Call) -> bool:
    preferences = ",".join(call.request.headers.getall("Prefer", []))
    return "include-unknown-enum-members" in {part.strip().lower() for part in preferences.split(",")}


def preference_applied(call: Call) -> dict[str, str]:
    """Return the header field that confirms the preference for late enum members, if the call stated it."""
    return {"Preference-Applied": "include-unknown-enum-members"} if _wants_all_members(call) else {}


def submission_entity(call: Call, submission: Submission) -> dict[str, Any]:
    """Return the submission as Graph answers it."""
    now, mail, drifted = call.state.clock.now(), submission.mail, call.state.settings.drifted_shape
    status = submission.status(now)
    entity: dict[str, Any] = {
        "@odata.type": submission.odata_type,
        "id": submission.id,
        "createdDateTime": stamp(submission.created),
        "contentType": "email",
        "category": submission.category,
        "source": submission.source,
        "clientSource": "microsoft",
        "status": status,
        "createdBy": _creator(submission.creator, drifted=drifted),
        "result": _result(call, submission, status),
        "adminReview": submission.review,
        "tenantId": call.tenant.id if call.tenant else None,
        "internetMessageId": mail.internet_message_id,
        "originalCategory": "notJunk",
        "receivedDateTime": stamp(mail.received) if mail.received else None,
        "recipientEmailAddress": submission.recipient,
        "sender": mail.sender or None,
        "senderIP": mail.sender_ip or None,
        "emailSubject" if drifted else "subject": mail.subject,
        "attackSimulationInfo": _simulation(submission) if status == "succeeded" else None,
        "tenantAllowOrBlockListAction": submission.list_action,
    }
    if submission.message_url is not None:
        entity["messageUrl"] = submission.message_url
    return entity


def _creator(creator: dict[str, str | None], *, drifted: bool) -> dict[str, Any]:
    if not drifted:
        return creator
    return {"user": {"identity": creator["id"], "displayName": creator["displayName"], "email": creator["email"]}}


def _result(call: Call, submission: Submission, status: str) -> dict[str, Any] | None:
    if status == "notStarted":
        return None
    verdict = submission.verdict
    pending = status == "running" and call.state.clock.now() < submission.due
    category = "beingAnalyzed" if pending else verdict.category
    detail = "underInvestigation" if pending else verdict.detail
    if not _wants_all_members(call):
        category = category if category in EARLY_CATEGORIES else "unknownFutureValue"
        detail = "unknownFutureValue" if detail in LATE_DETAILS else detail
    return {
        "category": category,
        "detail": detail,
        "detectedFiles": []
        if pending
        else [{"fileName": file.name, "fileHash": file.sha256} for file in verdict.detected_files],
        "detectedUrls": [] if pending else list(verdict.detected_urls),
        "userMailboxSetting": "none" if pending else verdict.user_mailbox_setting,
    }


def _simulation(submission: Submission) -> dict[str, Any] | None:
    if not submission.verdict.simulation:
        return None
    return {
        "attackSimDateTime": stamp(submission.mail.received or submission.created),
        "attackSimDurationTime": "P7D",
        "attackSimId": submission.id,
        "attackSimUserId": submission.recipient,
    }
