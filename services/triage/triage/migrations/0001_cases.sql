CREATE TABLE cases (
    case_id          uuid        PRIMARY KEY,
    tenant_id        uuid        NOT NULL,
    status           text        NOT NULL CHECK (status IN ('open', 'submitted', 'resolved', 'dismissed')),
    reported_as      text[]      NOT NULL,
    folders          text[]      NOT NULL,
    report_count     integer     NOT NULL,
    recipient        text        NOT NULL,
    sender           text,
    sender_domain    text,
    message          jsonb       NOT NULL,
    mailbox_message  jsonb,
    opened_at        timestamptz NOT NULL,
    last_reported_at timestamptz NOT NULL,
    submissions      integer     NOT NULL DEFAULT 0,
    submission_id    uuid,
    verdict          jsonb,
    conclusion       text,
    traceparent      text,
    -- A closed case expires when nothing has happened to it for the tenant's retention. Writing that down with each
    -- thing that happens would cost every report an index entry. So the job looks at cases by this time, and moves it
    -- forward to the last entry of the timeline when that is younger.
    quiet_since      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX cases_newest ON cases (tenant_id, opened_at DESC, case_id DESC);
CREATE INDEX cases_newest_by_status ON cases (tenant_id, status, opened_at DESC, case_id DESC);
CREATE INDEX cases_newest_by_sender ON cases (tenant_id, sender, opened_at DESC, case_id DESC);
CREATE INDEX cases_newest_by_domain ON cases (tenant_id, sender_domain, opened_at DESC, case_id DESC);
CREATE INDEX cases_closed ON cases (tenant_id, quiet_since) WHERE status IN ('resolved', 'dismissed');

-- What makes a later report join a case: SHA-256 of the kind and value of each identity of its mails.
CREATE TABLE case_keys (
    tenant_id uuid  NOT NULL,
    key       bytea NOT NULL,
    case_id   uuid  NOT NULL,
    PRIMARY KEY (tenant_id, key)
);
CREATE INDEX keys_of_case ON case_keys (case_id);

CREATE TABLE reports (
    report_id   uuid        PRIMARY KEY,
    tenant_id   uuid        NOT NULL,
    case_id     uuid        NOT NULL,
    reporter    text        NOT NULL,
    -- Object id of the signed-in person; null: an application reported for them. People are counted, not reports.
    reporter_id text,
    reported_as text        NOT NULL,
    folder      text        NOT NULL,
    sha256      text        NOT NULL,
    reported_at timestamptz NOT NULL
);
CREATE INDEX reports_of_case ON reports (case_id);

-- One row for each thing that happened to a case; `entry` names that thing, so that it is recorded once.
CREATE TABLE timeline (
    case_id uuid        NOT NULL,
    entry   text        NOT NULL,
    at      timestamptz NOT NULL,
    seq     bigint      GENERATED ALWAYS AS IDENTITY,
    kind    text        NOT NULL,
    actor   jsonb,
    detail  jsonb       NOT NULL,
    PRIMARY KEY (case_id, entry)
);

-- Blocks that were decided in a case. Once a block has ended, a new decision makes the next generation.
CREATE TABLE blocks (
    block_id   uuid        PRIMARY KEY,
    case_id    uuid        NOT NULL,
    kind       text        NOT NULL,
    value      text        NOT NULL,
    generation integer     NOT NULL,
    status     text        NOT NULL CHECK (status IN ('requested', 'applied', 'failed', 'removed')),
    -- What is in Microsoft's list for a block that was applied.
    entry      text,
    -- Why it failed or ended.
    reason     text,
    expires_at timestamptz,
    UNIQUE (case_id, kind, value, generation)
);
