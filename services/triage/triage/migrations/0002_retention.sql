-- A closed case expires when nothing has happened to it for the tenant's retention. Writing that down with each thing
-- that happens would cost every report an index entry. So the job looks at cases by this time, and moves it forward to
-- the last entry of the timeline when that is younger.
ALTER TABLE cases ADD COLUMN quiet_since timestamptz;
UPDATE cases SET quiet_since = opened_at;
ALTER TABLE cases ALTER COLUMN quiet_since SET DEFAULT now(), ALTER COLUMN quiet_since SET NOT NULL;
CREATE INDEX cases_closed ON cases (tenant_id, quiet_since) WHERE status IN ('resolved', 'dismissed');
CREATE INDEX keys_of_case ON case_keys (case_id);
