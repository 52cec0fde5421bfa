"""What a row of the quarantine says, whatever shape it has, and what users may do."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quarantine.rules import (
    LATE,
    Permissions,
    Status,
    is_partly_released,
    named,
    permitted,
    policy_warning,
    read_policies,
    read_row,
    windows,
)

NOW = datetime(2026, 3, 3, 8, tzinfo=UTC)
ROW = {
    "Identity": "5e6f7081-92a3-4b4c-05d6-08de78f9e7a1\\7c6d5e4f-3a2b-4c1d-9e8f-7a6b5c4d3e2f",
    "ReceivedTime": "2026-03-03T08:02:17.0000000Z",
    "Expires": "2026-03-18T08:02:17",
    "RecipientAddress": ["Anna@Contoso.example", "ben@contoso.example", "anna@contoso.example"],
    "SenderAddress": "Billing@fabrikam.example",
    "ReleaseStatus": "NOTRELEASED",
    "QuarantineTypes": "Spam",
    "EntityType": "Email",
}


def test_a_row_is_one_mail_for_each_recipient() -> None:
    """However often and in whatever case an address is named; times without a zone are UTC."""
    mails = read_row(ROW)
    assert [mail.recipient for mail in mails] == ["anna@contoso.example", "ben@contoso.example"]
    assert {mail.sharing for mail in mails} == {2}
    assert mails[0].expires_at == datetime(2026, 3, 18, 8, 2, 17, tzinfo=UTC)
    assert (mails[0].sender, mails[0].sender_domain) == ("billing@fabrikam.example", "fabrikam.example")
    assert mails[0].network_message_id == "5e6f7081-92a3-4b4c-05d6-08de78f9e7a1"


@pytest.mark.parametrize(
    ("more", "anna", "ben"),
    [
        ({}, Status.NOT_RELEASED, Status.NOT_RELEASED),
        ({"ReleaseStatus": "Requested"}, Status.REQUESTED, Status.REQUESTED),
        ({"ReleasedUser": ["ANNA@contoso.example"]}, Status.RELEASED, Status.NOT_RELEASED),
        ({"ReleaseStatus": "APPROVED", "ReleasedUser": ["anna@contoso.example"]}, Status.APPROVED, Status.APPROVED),
        ({"DeletedForRecipients": ["ben@contoso.example"]}, Status.NOT_RELEASED, Status.DELETED),
        ({"ReleaseStatus": "SOMETHINGNEW"}, Status.NOT_RELEASED, Status.NOT_RELEASED),
    ],
)
def test_each_recipient_has_a_state_of_their_own(more: dict[str, Any], anna: Status, ben: Status) -> None:
    """As far as the row tells."""
    assert [mail.status for mail in read_row({**ROW, **more})] == [anna, ben]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {**ROW, "Identity": ""},
        {**ROW, "Identity": "x"},
        {**ROW, "ReceivedTime": None},
        {**ROW, "EntityType": "Teams"},
    ],
)
def test_what_is_no_mail_or_cannot_be_named_is_left_out(row: dict[str, Any]) -> None:
    """Teams messages and files have other pages; without an Identity nothing can be done."""
    assert read_row(row) == []


@given(
    st.dictionaries(
        st.sampled_from(
            [*ROW, "ReleasedUser", "DeletedForRecipients", "Size", "RecipientCount", "ReleasedBy", "Subject"]
        ),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text() | st.integers()) | st.just("a\\b"),
    )
)
@example({"Identity": "\x00a\\b"})
def test_no_row_is_a_reason_to_fail(more: dict[str, Any]) -> None:
    """Exchange's rows are documented nowhere; what is read can be stored."""
    row = {**ROW, **more}
    is_partly_released(row)
    for mail in read_row(row):
        for text in (mail.identity, mail.recipient, mail.sender or "", mail.subject or "", *mail.released_by):
            assert "\x00" not in text
            text.encode()


@pytest.mark.parametrize(
    ("value", "kind", "allowed"),
    [
        (236, "Spam", Permissions.RELEASE),
        (4, "Malware", Permissions.REQUEST_RELEASE),
        (4, "HighConfPhish", Permissions.REQUEST_RELEASE),
        (4 | 8, "Spam", Permissions.RELEASE),
        (8, "Spam", Permissions.REQUEST_RELEASE),
        (43, "Phish", Permissions.REQUEST_RELEASE),
        (0, "Spam", Permissions(0)),
    ],
)
def test_a_user_may_release_or_ask_never_both(value: int, kind: str, allowed: Permissions) -> None:
    """Malware and certain phishing are only ever asked for."""
    both = Permissions.RELEASE | Permissions.REQUEST_RELEASE
    assert permitted(Permissions(value), kind) & both == allowed


@pytest.mark.parametrize(
    ("types", "shown"),
    [
        ({"QuarantineTypes": None, "Type": "High Confidence Phish"}, "HighConfPhish"),
        ({"QuarantineTypes": None, "Type": "High confidence phishing"}, "HighConfPhish"),
        ({"QuarantineTypes": "HighConfPhish", "Type": "High Confidence Phish"}, "HighConfPhish"),
        ({"QuarantineTypes": "HighConfPhish, Phish"}, "HighConfPhish, Phish"),
        ({"QuarantineTypes": "Phish; HIGH-CONF-PHISH"}, "HighConfPhish, Phish"),
        ({"QuarantineTypes": ["Spam", "Malware"]}, "Malware, Spam"),
        ({"QuarantineTypes": "Spam", "Type": "Malware"}, "Malware, Spam"),
        ({"QuarantineTypes": "Malware", "Type": "Spam"}, "Malware, Spam"),
        ({"QuarantineTypes": "Transport rule"}, "TransportRule"),
        ({"QuarantineTypes": "Data loss prevention"}, "DataLossPrevention"),
        ({"QuarantineTypes": "Admin action - File type block"}, "FileTypeBlock"),
        ({"QuarantineTypes": "AdminTriggered"}, "AdminTriggered"),
        ({"QuarantineTypes": "PPI"}, "PPI"),
        ({"QuarantineTypes": "SomethingNew"}, "SomethingNew"),
        ({"QuarantineTypes": "Spam SomethingNew"}, "Spam SomethingNew"),
        ({"QuarantineTypes": "Spam" + 9000 * " " + ", Malware"}, "Malware, Spam"),
        ({"QuarantineTypes": 7, "Type": "Spam"}, "7, Spam"),
        ({"QuarantineTypes": "", "Type": None}, "Unknown"),
        ({"QuarantineTypes": [], "Type": " , "}, "Unknown"),
    ],
)
def test_a_type_that_is_grave_unknown_or_missing_is_only_asked_for(types: dict[str, Any], shown: str) -> None:
    """Also beside one that users may release, in whichever column and whatever spelling."""
    (mail,) = read_row({**ROW, "RecipientAddress": "anna@contoso.example", "QuarantineTypes": None, **types})
    assert mail.quarantine_type == shown
    full = Permissions.PREVIEW | Permissions.RELEASE
    assert permitted(full, mail.quarantine_type) == Permissions.PREVIEW | Permissions.REQUEST_RELEASE


@pytest.mark.parametrize(
    "types",
    [
        {"QuarantineTypes": "Bulk"},
        {"QuarantineTypes": "SPAM", "Type": "Spam"},
        {"QuarantineTypes": None, "Type": "High Confidence Spam"},
        {"QuarantineTypes": "Phish", "Type": "Phishing"},
        {"QuarantineTypes": ["Spam", "Bulk"]},
    ],
)
def test_users_release_what_microsoft_lets_them(types: dict[str, Any]) -> None:
    """Spam, bulk and phishing, where the quarantine policy says so."""
    (mail,) = read_row({**ROW, "RecipientAddress": "anna@contoso.example", "QuarantineTypes": None, **types})
    assert permitted(Permissions.RELEASE, mail.quarantine_type) == Permissions.RELEASE


WRITTEN = """[PermissionToBlockSender: False
PermissionToDelete: True
PermissionToDownload: False
PermissionToPreview: True
PermissionToRelease: True
PermissionToRequestRelease: False
PermissionToViewHeader: False
PermissionToAllowSender: True]"""


@pytest.mark.parametrize(
    ("said", "permissions"),
    [
        (WRITTEN, 39),
        (WRITTEN.replace("\n", "\r\n"), 39),
        (WRITTEN.replace("\n", ", ").strip("[]"), 39),
        (WRITTEN.replace(": ", " :  ").upper(), 39),
        (WRITTEN.replace("\n", "\n  ").lower() + "\n", 39),
        ("[PermissionToRequestRelease: True]", 8),
        ("[PermissionToViewHeader: True\nPermissionToDownload: False\nPermissionToFly: True]", 128),
        ("[PermissionToRelease: True\nPermissionToRelease: False\nPermissionToPreview: True]", 2),
        ({"PermissionToRelease": True, "PermissionToPreview": False}, 4),
        (27, 27),
        ("236", 236),
        (0, 0),
        (WRITTEN.replace("True", "False"), 0),
    ],
)
@pytest.mark.parametrize("column", ["EndUserQuarantinePermissions", "EndUserQuarantinePermissionsValue"])
def test_permissions_are_read_as_text_or_as_a_number(said: Any, permissions: int, column: str) -> None:
    """Whichever stands where, with whatever ends of lines, spaces, brackets, case and names of their own."""
    (policy,) = read_policies([{"Name": "A", column: said}])
    assert (int(policy.permissions), policy.doubt) == (permissions, None)
    assert policy_warning([policy]) is None


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"EndUserQuarantinePermissions": None, "EndUserQuarantinePermissionsValue": None},
        {"EndUserQuarantinePermissions": ""},
        {"EndUserQuarantinePermissions": "[]"},
        {"EndUserQuarantinePermissions": "[PermissionToFly: True]"},
        {"EndUserQuarantinePermissions": "[PermissionToRelease: Truest]"},
        {"EndUserQuarantinePermissions": "Full access"},
        {"EndUserQuarantinePermissionsValue": "x"},
        {"EndUserQuarantinePermissionsValue": True},
        {"EndUserQuarantinePermissionsValue": -4},
        {"EndUserQuarantinePermissionsValue": 256 + 4},
        {"EndUserQuarantinePermissions": 2000 * "PermissionTo"},
    ],
)
def test_a_policy_that_cannot_be_read_permits_nothing_and_is_named(said: dict[str, Any]) -> None:
    """Beside others that can be; a row without a name is none, and the global policy is about notifications."""
    rows = [
        {"Name": "Odd", **said},
        {"Name": "Full", "EndUserQuarantinePermissions": WRITTEN},
        {"EndUserQuarantinePermissionsValue": 4},
        {"Name": "DefaultGlobalTag", "QuarantinePolicyType": "GlobalQuarantinePolicy"},
    ]
    policies = read_policies(rows)
    assert [(policy.name, int(policy.permissions)) for policy in policies] == [("Odd", 0), ("Full", 39)]
    trouble = policy_warning(policies) or ""
    assert ("Odd" in trouble, "Full" in trouble, "no digests" in trouble) == (True, False, True)


@pytest.mark.parametrize(
    ("text", "number", "lesser"),
    [
        ("[PermissionToRelease: True]", 0, 0),
        ("[PermissionToRelease: False]", 4, 0),
        ("[PermissionToRelease: True\nPermissionToPreview: True]", 2 | 8, 2 | 8),
        ("[PermissionToRequestRelease: True]", 4, 8),
        (WRITTEN, 39 | 16, 39),
    ],
)
def test_of_two_that_contradict_each_other_the_lesser_counts(text: str, number: int, lesser: int) -> None:
    """And it is said of which policy."""
    said = {"EndUserQuarantinePermissions": text, "EndUserQuarantinePermissionsValue": number}
    (policy,) = read_policies([{"Name": "Ours", **said}])
    assert int(policy.permissions) == lesser
    assert "contradict each other; what grants less counts: Ours" in (policy_warning([policy]) or "")


def test_a_tenant_without_policies_is_told_so() -> None:
    """Its users could do nothing, and nobody would know why."""
    assert "no quarantine policy" in (policy_warning([]) or "")


def test_windows_cover_the_time_since_the_last_reading_without_a_gap() -> None:
    """Day by day, a little of the last one again, and never more than Exchange looks back."""
    for read_until in (None, NOW - timedelta(days=90), NOW - timedelta(days=3), NOW - timedelta(minutes=1)):
        found = windows(read_until, NOW)
        assert found[0][1] > NOW
        assert all(earlier[1] == later[0] for later, earlier in pairwise(found))
        start = max(NOW - timedelta(days=30), read_until - LATE) if read_until else NOW - timedelta(days=30)
        assert found[-1][0] == start
        assert all(end - begin <= timedelta(days=1) for begin, end in found)


def test_a_row_is_found_by_its_whole_identity() -> None:
    """Of many others that Exchange answers instead."""
    assert named([ROW, {"Identity": "x\\y"}], "X\\Y") == {"Identity": "x\\y"}
    assert named([ROW], "x\\y") is None
