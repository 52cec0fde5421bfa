"""The status of a report, and its explanation. Pure functions over data."""

from collections.abc import Mapping
from enum import StrEnum

from backstop_contracts import CaseStatus, Conclusion, Override


class Status(StrEnum):
    """The progress of a report."""

    RECEIVED = "received"
    IN_TRIAGE = "in-triage"
    SUBMITTED = "submitted"
    VERDICT = "verdict"
    DISMISSED = "dismissed"


VERDICTS: Mapping[str, str] = {
    Conclusion.THREAT: "Microsoft confirms that this mail is a threat. Do not open its links or attachments.",
    Conclusion.CLEAN: "Microsoft looked at this mail and found no threat in it.",
    Conclusion.SIMULATION: "This mail was a phishing simulation of your own organisation. Well spotted.",
    Conclusion.UNKNOWN: "Microsoft could not reach a verdict. Your security team decides what happens next.",
}
OVERRIDES: Mapping[str, str] = {
    Override.ALLOWED: "Microsoft says that a setting of your organisation or of your mailbox let this mail in, and not "
    "whether it is a threat. Do not open its links or attachments.",
    Override.BLOCKED: "Microsoft says that a setting of your organisation or of your mailbox blocks this mail, and not "
    "whether it is a threat. Do not open its links or attachments.",
}
PROGRESS = {
    Status.RECEIVED: "Your report has arrived.",
    Status.IN_TRIAGE: "Your security team is looking at the mail.",
    Status.SUBMITTED: "The mail was submitted to Microsoft, whose analysis can take some hours.",
    Status.DISMISSED: "Your security team looked at the mail and found nothing malicious about it.",
}
_FINAL = {Conclusion.THREAT, Conclusion.CLEAN, Conclusion.SIMULATION}


def progress(status: CaseStatus | None, conclusion: str | None, override: str | None = None) -> tuple[Status, str]:
    """
    Return the status of a report, and its explanation in one sentence, from what is known of its case.

    The case's status and its verdict arrive on different topics, in any order. A definite verdict is final, and so is
    the *override* that Microsoft names instead of one: a submitted case does not hide it, and a resolved case whose
    verdict has not arrived yet does not anticipate it. If Microsoft reached no verdict, the case is open again, and
    what triage does next is shown instead.
    """
    if conclusion in _FINAL:
        return Status.VERDICT, VERDICTS[conclusion]
    if explanation := OVERRIDES.get(override or ""):
        return Status.VERDICT, explanation
    if status is None or status is CaseStatus.OPEN:
        if conclusion:
            return Status.VERDICT, VERDICTS.get(conclusion, VERDICTS[Conclusion.UNKNOWN])
        told = Status.RECEIVED if status is None else Status.IN_TRIAGE
    else:
        told = Status.DISMISSED if status is CaseStatus.DISMISSED else Status.SUBMITTED
    return told, PROGRESS[told]
