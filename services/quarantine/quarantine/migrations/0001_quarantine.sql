-- The tenants whose quarantine is mirrored. Whoever holds the latest `turn` may write what Exchange says.
CREATE TABLE syncs (
    tenant_id    uuid        PRIMARY KEY,
    due_at       timestamptz NOT NULL DEFAULT now(),
    attempts     integer     NOT NULL DEFAULT 0,
    turn         bigint      NOT NULL DEFAULT 0,
    -- All that was received before it has been read.
    read_until   timestamptz,
    -- Counts the whole readings of all days. What two of them in a row did not find is gone.
    sweep        bigint      NOT NULL DEFAULT 0,
    swept_at     timestamptz,
    succeeded_at timestamptz,
    -- Why the last round failed, in Microsoft's words where there are any, or what could not be read.
    warning      text
);

-- Quarantined mails, one row for each recipient.
CREATE TABLE messages (
    -- Made of tenant, identity and recipient.
    message_id          uuid        PRIMARY KEY,
    tenant_id           uuid        NOT NULL,
    -- Exchange's: the network message id, a backslash, and the id of the row in the quarantine.
    identity            text        NOT NULL,
    recipient           text        NOT NULL,
    -- How many recipients share the row in the quarantine.
    sharing             integer     NOT NULL,
    network_message_id  text        NOT NULL,
    internet_message_id text,
    sender              text,
    sender_domain       text,
    subject             text,
    size                bigint      NOT NULL,
    quarantine_type     text        NOT NULL,
    policy_type         text        NOT NULL,
    policy_name         text        NOT NULL,
    -- The quarantine policy: TagName.
    quarantine_policy   text        NOT NULL,
    direction           text        NOT NULL,
    received_at         timestamptz NOT NULL,
    expires_at          timestamptz NOT NULL,
    status              text        NOT NULL CHECK (status IN ('not-released', 'requested', 'preparing', 'released',
                                                               'approved', 'denied', 'error', 'expired', 'deleted')),
    released_by         text[]      NOT NULL DEFAULT '{}',
    first_seen_at       timestamptz NOT NULL DEFAULT now(),
    status_changed_at   timestamptz NOT NULL DEFAULT now(),
    -- When we last did something that Exchange may take a while to show.
    acted_at            timestamptz,
    sweep               bigint      NOT NULL,
    -- The digest that lists it for its recipient.
    digest_id           uuid
);
-- Pending release requests come first in every list.
CREATE INDEX messages_pending_first ON messages (tenant_id, (status = 'requested') DESC, received_at DESC, message_id DESC);
CREATE INDEX messages_of_mail ON messages (tenant_id, network_message_id);
CREATE INDEX messages_of_recipient ON messages (tenant_id, recipient, received_at DESC);
CREATE INDEX messages_of_sender ON messages (tenant_id, sender, received_at DESC);
CREATE INDEX messages_held ON messages (tenant_id, expires_at)
    WHERE status IN ('not-released', 'requested', 'preparing', 'denied', 'error');
CREATE INDEX messages_of_digest ON messages (digest_id);
CREATE INDEX messages_untold ON messages (tenant_id, first_seen_at) WHERE digest_id IS NULL AND status = 'not-released';

-- What quarantine policies let users do: EndUserQuarantinePermissionsValue.
CREATE TABLE policies (
    tenant_id   uuid    NOT NULL,
    name        text    NOT NULL,
    permissions integer NOT NULL,
    notifies    boolean NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

-- What somebody wants done with a quarantined mail, and what became of it.
CREATE TABLE actions (
    -- Made of the mail, the kind, the variant and the round.
    action_id    uuid        PRIMARY KEY,
    tenant_id    uuid        NOT NULL,
    message_id   uuid        NOT NULL REFERENCES messages,
    -- release, deny, request: Release-QuarantineMessage. report: a user's report; submit: an admin's, with a decision.
    kind         text        NOT NULL CHECK (kind IN ('release', 'deny', 'request', 'report', 'submit')),
    -- What tells two wishes of one kind apart: what is reported, or the hash of the decision.
    variant      text        NOT NULL DEFAULT '',
    -- Counts the wishes after an earlier one failed or was overtaken.
    round        integer     NOT NULL,
    reported_as  text,
    -- The admin's decision, in JSON as the event carries it.
    decision     text,
    reason       text,
    -- Who wants it: an Actor in JSON.
    by           text        NOT NULL,
    state        text        NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'succeeded', 'failed')),
    already_done boolean     NOT NULL DEFAULT false,
    failure      text        CHECK (failure IN ('refused', 'not-allowed', 'gone', 'gave-up')),
    detail       text,
    report_id    uuid,
    traceparent  text,
    requested_at timestamptz NOT NULL DEFAULT now(),
    settled_at   timestamptz,
    due_at       timestamptz NOT NULL DEFAULT now(),
    attempts     integer     NOT NULL DEFAULT 0,
    -- True from the claim until the outcome is recorded: the next attempt looks first.
    unanswered   boolean     NOT NULL DEFAULT false,
    UNIQUE (message_id, kind, variant, round)
);
CREATE INDEX actions_due ON actions (due_at) WHERE state = 'pending';
CREATE INDEX actions_of_report ON actions (report_id);

CREATE TABLE reports (
    report_id  uuid PRIMARY KEY,
    message_id uuid NOT NULL REFERENCES messages,
    case_id    uuid
);
CREATE INDEX reports_of_message ON reports (message_id);
CREATE INDEX reports_of_case ON reports (case_id);

-- How users hear of their quarantined mail. A tenant without a row sends no digests.
CREATE TABLE settings (
    tenant_id  uuid        PRIMARY KEY,
    settings   jsonb       NOT NULL,
    changed_by text        NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- The periods that were planned: all digests of one, or none.
CREATE TABLE periods (
    tenant_id uuid        NOT NULL,
    every     text        NOT NULL,
    ended_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, every, ended_at)
);

-- One mail to one recipient about one period.
CREATE TABLE digests (
    -- Made of tenant, recipient and period.
    digest_id  uuid        PRIMARY KEY,
    tenant_id  uuid        NOT NULL,
    recipient  text        NOT NULL,
    every      text        NOT NULL,
    ended_at   timestamptz NOT NULL,
    state      text        NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'nothing', 'failed')),
    -- Graph's id of the one draft that may be sent; written before it is.
    draft_id   text,
    detail     text,
    planned_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    due_at     timestamptz NOT NULL DEFAULT now(),
    attempts   integer     NOT NULL DEFAULT 0
);
CREATE INDEX digests_due ON digests (due_at) WHERE state = 'pending';
