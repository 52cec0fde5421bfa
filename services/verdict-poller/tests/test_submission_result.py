"""Microsoft's result: its words, conclusions and shapes."""

import pytest
from verdict_builders import RECIPIENT, SHA256, URL, explained, message, override, result, rules_of

from backstop_contracts.events import Conclusion, DetectedFile
from verdict_poller.rules import needed_queries
from verdict_poller.submission_result import Result, conclude, is_final, override_of, read_result

VERDICTS = {
    "notJunk": Conclusion.CLEAN,
    "spam": Conclusion.THREAT,
    "phishing": Conclusion.THREAT,
    "malware": Conclusion.THREAT,
    "allowedByPolicy": Conclusion.UNKNOWN,
    "blockedByPolicy": Conclusion.UNKNOWN,
    "spoof": Conclusion.THREAT,
    "unknown": Conclusion.UNKNOWN,
    "noResultAvailable": Conclusion.UNKNOWN,
    "unknownFutureValue": Conclusion.UNKNOWN,
    "beingAnalyzed": Conclusion.UNKNOWN,
    "notSubmittedToMicrosoft": Conclusion.UNKNOWN,
    "phishingSimulation": Conclusion.SIMULATION,
    "allowedDueToOrganizationOverride": Conclusion.UNKNOWN,
    "blockedDueToOrganizationOverride": Conclusion.UNKNOWN,
    "allowedDueToUserOverride": Conclusion.UNKNOWN,
    "blockedDueToUserOverride": Conclusion.UNKNOWN,
    "itemNotfound": Conclusion.UNKNOWN,
    "threatsFound": Conclusion.THREAT,
    "noThreatsFound": Conclusion.CLEAN,
    "domainImpersonation": Conclusion.THREAT,
    "userImpersonation": Conclusion.THREAT,
    "brandImpersonation": Conclusion.THREAT,
    "authenticationFailure": Conclusion.UNKNOWN,
    "spoofedBlocked": Conclusion.THREAT,
    "spoofedAllowed": Conclusion.THREAT,
    "reasonLostInTransit": Conclusion.UNKNOWN,
    "bulk": Conclusion.THREAT,
}
"""Every member of Microsoft's `submissionResultCategory`."""


# fmt: off
DETAILS = (
    "none", "underInvestigation", "simulatedThreat", "allowedBySecOps", "allowedByThirdPartyFilters",
    "messageNotFound", "urlFileShouldNotBeBlocked", "urlFileShouldBeBlocked", "urlFileCannotMakeDecision",
    "domainImpersonation", "userImpersonation", "brandImpersonation", "outboundShouldNotBeBlocked",
    "outboundShouldBeBlocked", "outboundBulk", "outboundCannotMakeDecision", "outboundNotRescanned",
    "zeroHourAutoPurgeAllowed", "zeroHourAutoPurgeBlocked", "zeroHourAutoPurgeQuarantineReleased", "onPremisesSkip",
    "allowedByTenantAllowBlockList", "blockedByTenantAllowBlockList", "allowedUrlByTenantAllowBlockList",
    "allowedFileByTenantAllowBlockList", "allowedSenderByTenantAllowBlockList",
    "allowedRecipientByTenantAllowBlockList", "blockedUrlByTenantAllowBlockList", "blockedFileByTenantAllowBlockList",
    "blockedSenderByTenantAllowBlockList", "blockedRecipientByTenantAllowBlockList", "allowedByConnection",
    "blockedByConnection", "allowedByExchangeTransportRule", "blockedByExchangeTransportRule", "quarantineReleased",
    "quarantineReleasedThenBlocked", "junkMailRuleDisabled", "allowedByUserSetting", "blockedByUserSetting",
    "allowedByTenant", "blockedByTenant", "invalidFalsePositive", "invalidFalseNegative", "spoofBlocked",
    "goodReclassifiedAsBad", "goodReclassifiedAsBulk", "goodReclassifiedAsGood",
    "goodReclassifiedAsCannotMakeDecision", "badReclassifiedAsGood", "badReclassifiedAsBulk", "badReclassifiedAsBad",
    "badReclassifiedAsCannotMakeDecision", "unknownFutureValue", "willNotifyOnceDone", "checkUserReportedSettings",
    "partOfEducationCampaign", "allowedByAdvancedDelivery", "allowedByEnhancedFiltering", "itemDeleted",
    "itemFoundClean", "itemFoundMalicious", "unableToMakeDecision", "domainResembledYourOrganization",
    "endUserBeingImpersonated", "associatedWithBrand", "senderFailedAuthentication", "endUserBeingSpoofed",
    "itemFoundBulk", "itemNotReceivedByService", "itemFoundSpam",
)
# fmt: on
"""Every member of Microsoft's `submissionResultDetail`."""


@pytest.mark.parametrize(("verdict", "conclusion"), VERDICTS.items())
def test_every_verdict_has_a_conclusion(verdict: str, conclusion: Conclusion) -> None:
    """Each member of `submissionResultCategory` means threat, clean, simulation or unknown."""
    assert conclude(result(verdict)) is conclusion


@pytest.mark.parametrize(
    ("answer", "override"),
    [
        (result("allowedDueToOrganizationOverride", "allowedBySecOps"), "allowed"),
        (result("allowedDueToOrganizationOverride", None), "allowed"),
        (result("allowedByPolicy"), "allowed"),
        (result("allowedDueToUserOverride", "junkMailRuleDisabled"), "allowed"),
        (result("unknown", "allowedByConnection"), "allowed"),
        (result("unknown", "quarantineReleased"), "allowed"),
        (result("blockedDueToOrganizationOverride", "blockedByConnection"), "blocked"),
        (result("blockedDueToUserOverride", None), "blocked"),
        (result("blockedByPolicy"), "blocked"),
        (result("unknown", "blockedByTenant"), "blocked"),
        (result("allowedDueToOrganizationOverride", "goodReclassifiedAsBad"), None),
        (result("noThreatsFound", "allowedByTenant"), None),
        (result("threatsFound", "blockedByTenant"), None),
        (result("phishingSimulation", "allowedByAdvancedDelivery"), None),
        (result("unknown"), None),
        (result("", None, status="failed"), None),
    ],
    ids=lambda value: f"{value.verdict}-{value.detail}" if isinstance(value, Result) else value,
)
def test_an_override_is_reported_if_microsoft_says_nothing_more(answer: Result, override: str | None) -> None:
    """That a setting allowed or blocked a message does not say whether it is a threat."""
    assert override_of(answer) == override
    if override:
        assert conclude(answer) is Conclusion.UNKNOWN


@pytest.mark.parametrize("verdict", [*VERDICTS, "", "somethingNew"])
def test_every_pair_of_verdict_and_detail_is_explained(verdict: str) -> None:
    """There is a cause for every combination, with settings or without."""
    for detail in [*DETAILS, None, "somethingNew"]:
        answer = result(verdict, detail)
        needed = dict.fromkeys(needed_queries(answer, message(), RECIPIENT), ())

        for rows in ({}, needed):
            causes = explained(answer, rows=rows)

            assert causes
            assert len(set(rules_of(causes))) == len(causes)


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        (result("threatsFound"), True),
        (result("noThreatsFound", status=""), True),
        (result("allowedDueToUserOverride", status="unknownFutureValue"), True),
        (result("", None, status="failed"), True),
        (result("beingAnalyzed", "underInvestigation", status="skipped"), True),
        (result("", None, status="succeeded"), False),
        (result("", None, status=""), False),
        (result("threatsFound", status="running"), False),
        (result("unknown", status="notStarted"), False),
        (result("beingAnalyzed"), False),
        (result("unknown", "underInvestigation"), False),
        (result("unknown", "willNotifyOnceDone"), False),
    ],
)
def test_a_result_is_final_if_microsoft_will_not_change_it(answer: Result, final: bool) -> None:
    """A running analysis is not final, an abandoned one is, and a success without a verdict is not."""
    assert is_final(answer) is final


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_but_being_analyzed_ends_the_watch(verdict: str) -> None:
    """Once the submission has succeeded."""
    assert is_final(result(verdict)) is (verdict != "beingAnalyzed")


@pytest.mark.parametrize(
    ("answer", "conclusion"),
    [
        (result("threatsFound", simulation=True), Conclusion.SIMULATION),
        (result("noThreatsFound", "partOfEducationCampaign"), Conclusion.SIMULATION),
        (override("allowedBySecOps"), Conclusion.UNKNOWN),
        (override("allowedByAdvancedDelivery"), Conclusion.UNKNOWN),
        (result("threatsFound", "goodReclassifiedAsGood"), Conclusion.THREAT),
        (result("noThreatsFound", "goodReclassifiedAsBad"), Conclusion.CLEAN),
        (result("unknownFutureValue", "goodReclassifiedAsBad"), Conclusion.THREAT),
        (result("", None, status="failed"), Conclusion.UNKNOWN),
    ],
)
def test_the_detail_decides_only_what_the_verdict_leaves_open(answer: Result, conclusion: Conclusion) -> None:
    """A simulation is one whatever the verdict; a message delivered on purpose was never judged."""
    assert conclude(answer) is conclusion


def test_a_submission_is_read_as_microsoft_documents_it() -> None:
    """The documented shape: a result with flags in one string, files and URLs."""
    entity = {
        "@odata.type": "#microsoft.graph.security.emailUrlThreatSubmission",
        "id": "49c5ef5b-1f65-444a-e6b9-08d772ea2059",
        "status": "succeeded",
        "createdBy": {"user": {"identity": "c52ce8db", "displayName": "Ronald Admin"}},
        "emailSubject": "drifted name",
        "attackSimulationInfo": None,
        "result": {
            "category": "allowedDueToUserOverride",
            "detail": "allowedByUserSetting",
            "detectedUrls": [URL, None, 7],
            "detectedFiles": [{"fileName": "bill.zip", "fileHash": SHA256}, {"fileName": ""}, "odd"],
            "userMailboxSetting": "isFromDomainInDomainSafeList, isJunkMailRuleEnabled,none",
        },
    }

    assert read_result(entity) == Result(
        graph_id="49c5ef5b-1f65-444a-e6b9-08d772ea2059",
        status="succeeded",
        verdict="allowedDueToUserOverride",
        detail="allowedByUserSetting",
        user_mailbox_settings=("isFromDomainInDomainSafeList", "isJunkMailRuleEnabled"),
        detected_urls=(URL,),
        detected_files=(DetectedFile(name="bill.zip", sha256=SHA256),),
        simulation=False,
    )


def test_a_submission_without_result_or_with_flags_as_a_list_is_read() -> None:
    """Undocumented shapes: no result yet, a null, flags as a list, a simulation."""
    assert read_result({"id": "1", "status": "running", "result": None}).verdict == ""
    assert read_result({"attackSimulationInfo": {"attackSimId": "1"}}).simulation
    assert read_result({"result": {"userMailboxSetting": ["customRule", "customRule", 3]}}).user_mailbox_settings == (
        "customRule",
    )
