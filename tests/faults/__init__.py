"""Fault injection: break the running system, then check that nothing was lost and nothing was done twice."""
