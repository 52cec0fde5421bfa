"""Break the running system on purpose, and check that nothing was lost and nothing done twice."""
