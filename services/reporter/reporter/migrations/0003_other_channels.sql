-- Which case a report of another channel is in, when that was heard before the report itself.
CREATE TABLE early_cases (
    report_id uuid        PRIMARY KEY,
    case_id   uuid        NOT NULL,
    noted_at  timestamptz NOT NULL DEFAULT now()
);
