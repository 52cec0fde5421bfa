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

-- What is known about the cases of triage. `status` is NULL until case-updated came, `conclusion` until verdict-ready.
CREATE TABLE cases (
    case_id    uuid        PRIMARY KEY,
    status     text        CHECK (status IN ('open', 'submitted', 'resolved', 'dismissed')),
    changed_at timestamptz,
    conclusion text        CHECK (conclusion IN ('threat', 'clean', 'simulation', 'unknown')),
    read_at    timestamptz
);

-- Blocks that users want for their own mailbox. `round` counts the wishes for one sender after an earlier one ended.
CREATE TABLE blocks (
    block_id  uuid    PRIMARY KEY,
    tenant_id uuid    NOT NULL,
    mailbox   text    NOT NULL,
    sender    text    NOT NULL,
    round     integer NOT NULL,
    status    text    NOT NULL CHECK (status IN ('requested', 'applied', 'failed', 'removed')),
    reason    text,
    UNIQUE (tenant_id, mailbox, sender, round)
);
