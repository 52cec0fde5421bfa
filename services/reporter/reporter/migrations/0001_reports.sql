-- Each report once: the id is made of tenant, reporter, message and what the reporter says about it.
CREATE TABLE reports (
    report_id   uuid        PRIMARY KEY,
    tenant_id   uuid        NOT NULL,
    -- Object ids of whoever filed it: the reporter, or an application on their behalf.
    filed_by    text[]      NOT NULL,
    reporter    text        NOT NULL,
    reported_as text        NOT NULL,
    folder      text        NOT NULL,
    sha256      text        NOT NULL,
    reported_at timestamptz NOT NULL,
    case_id     uuid,
    block_id    uuid
);
CREATE INDEX reports_of_case ON reports (case_id);
CREATE INDEX reports_of_message ON reports (tenant_id, sha256);

-- Raw messages that no report may refer to any more: the worker looks, and deletes them from the mail store.
CREATE TABLE expired_messages (
    tenant_id uuid        NOT NULL,
    sha256    text        NOT NULL,
    due_at    timestamptz NOT NULL DEFAULT now(),
    -- Above zero before the first deletion can begin: from then on, the store may have lost the message at any moment.
    attempts  integer     NOT NULL DEFAULT 0,
    -- The row stays for a day, for reports whose message was put into the store before it was deleted.
    deleted   boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, sha256)
);
CREATE INDEX expired_messages_due ON expired_messages (due_at);

CREATE FUNCTION message_lock(tenant uuid, message text) RETURNS bigint LANGUAGE sql IMMUTABLE
    AS $$ SELECT hashtextextended('reporter message ' || tenant || ' ' || message, 0) $$;

-- Keep a message from being deleted until the transaction ends; return whether it was deleted a short while ago, or may
-- have been. VOLATILE: each statement sees what is committed when it begins, so the second sees what the first waited for.
CREATE FUNCTION hold_message(tenant uuid, message text) RETURNS boolean LANGUAGE sql VOLATILE
    AS $$
        SELECT pg_advisory_xact_lock_shared(message_lock(tenant, message));
        SELECT EXISTS (SELECT FROM expired_messages WHERE tenant_id = tenant AND sha256 = message AND attempts > 0);
    $$;

-- Which case a report of another channel is in, when that was heard before the report itself.
CREATE TABLE early_cases (
    report_id uuid        PRIMARY KEY,
    case_id   uuid        NOT NULL,
    noted_at  timestamptz NOT NULL DEFAULT now()
);
