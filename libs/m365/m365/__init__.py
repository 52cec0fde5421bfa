"""Clients for Microsoft 365: tokens, Graph, Exchange cmdlets, errors. Independent of individual endpoints."""

from m365.errors import M365Error, Refused, Throttled, Truncated, Unauthorised, Unavailable
from m365.exchange import Exchange, Records, hashtable
from m365.graph import Graph
from m365.session import open_session
from m365.settings import M365Settings, connect
from m365.tokens import Credential, Tokens

__all__ = [
    "Credential",
    "Exchange",
    "Graph",
    "M365Error",
    "M365Settings",
    "Records",
    "Refused",
    "Throttled",
    "Tokens",
    "Truncated",
    "Unauthorised",
    "Unavailable",
    "connect",
    "hashtable",
    "open_session",
]
