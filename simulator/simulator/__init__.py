"""
Entra ID, Microsoft Graph (threatSubmission, mail) and Exchange Online (InvokeCommand, quarantine) on localhost.

Stateful, with Microsoft's limits, faults to order and a ledger of every effect. See the README for the control routes.
"""

from simulator.app import Simulator, serve
from simulator.settings import Settings
from simulator.tenant import DEFAULT_APP, DEFAULT_SECRET, TenantSettings

__all__ = ["DEFAULT_APP", "DEFAULT_SECRET", "Settings", "Simulator", "TenantSettings", "serve"]
