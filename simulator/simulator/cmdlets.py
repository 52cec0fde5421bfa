"""
The Exchange Online cmdlets that the simulator knows, and those among them that only read what a tenant has.

Names, parameters and rules are those of the cmdlets' reference pages on Microsoft Learn; how rows look on the wire was
measured by others and is not documented. The texts of errors are only alike.
"""

from simulator import allow_block_list_cmdlets, junk_email_cmdlets, policies, quarantine_cmdlets
from simulator.calls import Call
from simulator.parameters import Cmdlet, CmdletError, Parameters, checked, find_mailbox, holds, narrowed, required
from simulator.tenant import Row, Tenant


def invoke(call: Call, tenant: Tenant, name: str, given: Parameters) -> list[Row]:
    """Run the cmdlet *name*; raise CmdletError for what it refuses."""
    cmdlet = CMDLETS.get(name)
    if cmdlet is None:
        return _rows(tenant, name, given)
    return cmdlet.run(call, tenant, checked(given, cmdlet.parameters))


def canonical(tenant: Tenant, name: str) -> str | None:
    """Return the cmdlet's name in its own spelling; None when the tenant has no such cmdlet."""
    known = (*CMDLETS, *policies.CMDLETS, *tenant.settings.cmdlets)
    return next((cmdlet for cmdlet in known if cmdlet.lower() == name.lower()), None)


_FILTERS: dict[str, tuple[str, ...]] = {
    "Get-TransportRule": ("State",),
    "Get-TenantAllowBlockListSpoofItems": ("Action", "SpoofType"),
    "Get-EOPProtectionPolicyRule": ("State",),
    "Get-ATPProtectionPolicyRule": ("State",),
}


def _rows(tenant: Tenant, name: str, given: Parameters) -> list[Row]:
    """Return the tenant's rows of a `Get-` cmdlet; Identity picks one by Identity or Name."""
    filters = _FILTERS.get(name, ())
    parameters = checked(given, frozenset({"Identity", "ResultSize", *filters}))
    rows = narrowed(tenant.rows(name) or [], parameters, filters)
    if "Identity" not in parameters or name == "Get-TenantAllowBlockListSpoofItems":
        return rows
    identity = str(parameters["Identity"])
    named = [row for row in rows if holds(row, "Identity", identity) or holds(row, "Name", identity)]
    if not named:
        message = f"The operation couldn't be performed because object '{identity}' couldn't be found on 'directory'."
        raise CmdletError(message, 404)
    return named


def _get_inbox_rules(_call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    owner = find_mailbox(tenant, required(parameters, "Mailbox")).address
    return [row for row in tenant.rows("Get-InboxRule") or [] if holds(row, "MailboxOwnerId", owner)]


def _get_recommendations(_call: Call, tenant: Tenant, parameters: Parameters) -> list[Row]:
    """Return the same rows for both baselines, except those that name one as RecommendedPolicyType."""
    baseline = str(required(parameters, "RecommendedPolicyType"))
    if baseline not in ("Standard", "Strict"):
        raise CmdletError("Cannot process argument transformation on parameter 'RecommendedPolicyType'.")
    rows = tenant.rows("Get-ConfigAnalyzerPolicyRecommendation") or []
    return [row for row in rows if row.get("RecommendedPolicyType", baseline) == baseline]


CMDLETS: dict[str, Cmdlet] = {
    **allow_block_list_cmdlets.CMDLETS,
    "Get-InboxRule": Cmdlet(_get_inbox_rules, frozenset({"Mailbox", "Identity", "ResultSize"})),
    "Get-ConfigAnalyzerPolicyRecommendation": Cmdlet(
        _get_recommendations, frozenset({"RecommendedPolicyType", "Identity"})
    ),
    **quarantine_cmdlets.CMDLETS,
    **junk_email_cmdlets.CMDLETS,
}
