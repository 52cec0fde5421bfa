-- Until when Microsoft asked to be left alone about a tenant: no replica calls before, whatever comes due.
CREATE TABLE throttled (
    tenant_id uuid        PRIMARY KEY,
    until     timestamptz NOT NULL
);
