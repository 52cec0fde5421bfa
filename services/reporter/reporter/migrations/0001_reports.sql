-- Each report once: the id is made of tenant, reporter, mail and what the reporter says about it.
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
CREATE INDEX reports_of_mail ON reports (tenant_id, sha256);

-- Raw mails that no report may refer to any more: the worker looks, and deletes them from the mail store.
CREATE TABLE expired_mails (
    tenant_id uuid        NOT NULL,
    sha256    text        NOT NULL,
    due_at    timestamptz NOT NULL DEFAULT now(),
    -- Above zero before the first deletion can begin: from then on, the store may have lost the mail at any moment.
    attempts  integer     NOT NULL DEFAULT 0,
    -- The row stays for a day, for reports whose mail was put into the store before it was deleted.
    deleted   boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant_id, sha256)
);
CREATE INDEX expired_mails_due ON expired_mails (due_at);

CREATE FUNCTION mail_lock(tenant uuid, mail text) RETURNS bigint LANGUAGE sql IMMUTABLE
    AS $$ SELECT hashtextextended('reporter mail ' || tenant || ' ' || mail, 0) $$;

-- Keep a mail from being deleted until the transaction ends; tell whether it was deleted a short while ago, or may have
-- been. VOLATILE: each statement sees what is committed when it begins, so the second sees what the first waited for.
CREATE FUNCTION hold_mail(tenant uuid, mail text) RETURNS boolean LANGUAGE sql VOLATILE
    AS $$
        SELECT pg_advisory_xact_lock_shared(mail_lock(tenant, mail));
        SELECT EXISTS (SELECT FROM expired_mails WHERE tenant_id = tenant AND sha256 = mail AND attempts > 0);
    $$;

-- Which case a report of another channel is in, when that was heard before the report itself.
CREATE TABLE early_cases (
    report_id uuid        PRIMARY KEY,
    case_id   uuid        NOT NULL,
    noted_at  timestamptz NOT NULL DEFAULT now()
);
