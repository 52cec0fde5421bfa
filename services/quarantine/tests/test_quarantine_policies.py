"""Quarantine policies are parsed, whatever their shape, and decide what users may do."""

from typing import Any

import pytest

from quarantine.exchange_rows import parse_row
from quarantine.quarantine_policies import Permissions, effective_permissions, parse_policies, policy_warning

ROW = {
    "Identity": "5e6f7081-92a3-4b4c-05d6-08de78f9e7a1\\7c6d5e4f-3a2b-4c1d-9e8f-7a6b5c4d3e2f",
    "ReceivedTime": "2026-03-03T08:02:17.0000000Z",
    "RecipientAddress": "anna@contoso.example",
}


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
def test_a_user_may_release_or_request_never_both(value: int, kind: str, allowed: Permissions) -> None:
    """The release of malware and high confidence phishing can only be requested."""
    both = Permissions.RELEASE | Permissions.REQUEST_RELEASE
    assert effective_permissions(Permissions(value), kind) & both == allowed


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
def test_a_severe_unknown_or_missing_type_can_only_be_requested(types: dict[str, Any], shown: str) -> None:
    """Also together with a type that users may release, in either column and any spelling."""
    (message,) = parse_row({**ROW, **types})
    assert message.quarantine_type == shown
    full = Permissions.PREVIEW | Permissions.RELEASE
    assert effective_permissions(full, message.quarantine_type) == Permissions.PREVIEW | Permissions.REQUEST_RELEASE


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
def test_users_may_release_spam_bulk_and_phishing(types: dict[str, Any]) -> None:
    """If the quarantine policy lets them."""
    (message,) = parse_row({**ROW, **types})
    assert effective_permissions(Permissions.RELEASE, message.quarantine_type) == Permissions.RELEASE


AS_TEXT = """[PermissionToBlockSender: False
PermissionToDelete: True
PermissionToDownload: False
PermissionToPreview: True
PermissionToRelease: True
PermissionToRequestRelease: False
PermissionToViewHeader: False
PermissionToAllowSender: True]"""


@pytest.mark.parametrize(
    ("value", "permissions"),
    [
        (AS_TEXT, 39),
        (AS_TEXT.replace("\n", "\r\n"), 39),
        (AS_TEXT.replace("\n", ", ").strip("[]"), 39),
        (AS_TEXT.replace(": ", " :  ").upper(), 39),
        (AS_TEXT.replace("\n", "\n  ").lower() + "\n", 39),
        ("[PermissionToRequestRelease: True]", 8),
        ("[PermissionToViewHeader: True\nPermissionToDownload: False\nPermissionToFly: True]", 128),
        ("[PermissionToRelease: True\nPermissionToRelease: False\nPermissionToPreview: True]", 2),
        ({"PermissionToRelease": True, "PermissionToPreview": False}, 4),
        (27, 27),
        ("236", 236),
        (0, 0),
        (AS_TEXT.replace("True", "False"), 0),
    ],
)
@pytest.mark.parametrize("column", ["EndUserQuarantinePermissions", "EndUserQuarantinePermissionsValue"])
def test_permissions_are_parsed_as_text_or_number(value: Any, permissions: int, column: str) -> None:
    """In either column, with any line ends, spaces, brackets, case and unknown permissions."""
    (policy,) = parse_policies([{"Name": "A", column: value}])
    assert (int(policy.permissions), policy.doubt) == (permissions, None)
    assert policy_warning([policy]) is None


@pytest.mark.parametrize(
    "columns",
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
def test_an_unreadable_policy_permits_nothing_and_is_named_in_a_warning(columns: dict[str, Any]) -> None:
    """Readable policies are not affected. Rows without a name and the global policy are skipped."""
    rows = [
        {"Name": "Odd", **columns},
        {"Name": "Full", "EndUserQuarantinePermissions": AS_TEXT},
        {"EndUserQuarantinePermissionsValue": 4},
        {"Name": "DefaultGlobalTag", "QuarantinePolicyType": "GlobalQuarantinePolicy"},
    ]
    policies = parse_policies(rows)
    assert [(policy.name, int(policy.permissions)) for policy in policies] == [("Odd", 0), ("Full", 39)]
    warning = policy_warning(policies) or ""
    assert ("Odd" in warning, "Full" in warning, "no digests" in warning) == (True, False, True)


@pytest.mark.parametrize(
    ("text", "number", "lesser"),
    [
        ("[PermissionToRelease: True]", 0, 0),
        ("[PermissionToRelease: False]", 4, 0),
        ("[PermissionToRelease: True\nPermissionToPreview: True]", 2 | 8, 2 | 8),
        ("[PermissionToRequestRelease: True]", 4, 8),
        (AS_TEXT, 39 | 16, 39),
    ],
)
def test_of_contradictory_permissions_the_lesser_count(text: str, number: int, lesser: int) -> None:
    """A warning names the policy."""
    columns = {"EndUserQuarantinePermissions": text, "EndUserQuarantinePermissionsValue": number}
    (policy,) = parse_policies([{"Name": "Ours", **columns}])
    assert int(policy.permissions) == lesser
    assert "contradict each other. The lesser permissions apply to: Ours" in (policy_warning([policy]) or "")


def test_a_tenant_without_policies_gets_a_warning() -> None:
    """Otherwise nobody would know why its users can do nothing."""
    assert "no quarantine policy" in (policy_warning([]) or "")
