-- The tenants whose quarantine is synced. Only the worker with the latest `lease_number` may write what Exchange lists.
CREATE TABLE syncs (
    tenant_id    uuid        PRIMARY KEY,
    due_at       timestamptz NOT NULL DEFAULT now(),
    attempts     integer     NOT NULL DEFAULT 0,
    lease_number bigint      NOT NULL DEFAULT 0,
    -- Every message received before this time has been read.
    read_until   timestamptz,
    -- Counts the sweeps, which read all 30 days. A message that two sweeps in a row do not list was deleted.
    sweep        bigint      NOT NULL DEFAULT 0,
    swept_at     timestamptz,
    succeeded_at timestamptz,
    -- Why the last sync failed, with Microsoft's reason if there is one, or which policies could not be parsed.
    warning      text
);

-- Quarantined messages, one row for each recipient.
CREATE TABLE messages (
    -- Derived from tenant, identity and recipient.
    message_id          uuid        PRIMARY KEY,
    tenant_id           uuid        NOT NULL,
    -- Exchange's Identity: the network message id, a backslash, and the id of the row in the quarantine.
    identity            text        NOT NULL,
    recipient           text        NOT NULL,
    -- How many recipients share the row in the quarantine.
    recipient_count     integer     NOT NULL,
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
    -- When an action of ours last changed the status; Exchange may list the old one for a while.
    acted_at            timestamptz,
    sweep               bigint      NOT NULL,
    -- The digest that lists the message for its recipient.
    digest_id           uuid
);
-- Pending release requests come first in every list.
CREATE INDEX messages_pending_first ON messages (tenant_id, (status = 'requested') DESC, received_at DESC, message_id DESC);
CREATE INDEX messages_of_network_message ON messages (tenant_id, network_message_id);
CREATE INDEX messages_of_recipient ON messages (tenant_id, recipient, received_at DESC);
CREATE INDEX messages_of_sender ON messages (tenant_id, sender, received_at DESC);
CREATE INDEX messages_held ON messages (tenant_id, expires_at)
    WHERE status IN ('not-released', 'requested', 'preparing', 'denied', 'error');
CREATE INDEX messages_of_digest ON messages (digest_id);
CREATE INDEX messages_without_digest ON messages (tenant_id, first_seen_at) WHERE digest_id IS NULL AND status = 'not-released';

-- Quarantine policies. `permissions` has the bits of EndUserQuarantinePermissionsValue.
CREATE TABLE policies (
    tenant_id   uuid    NOT NULL,
    name        text    NOT NULL,
    permissions integer NOT NULL,
    notifies    boolean NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

-- Actions that users and admins requested for a quarantined message, and their outcome.
CREATE TABLE actions (
    -- Derived from message, kind, variant and generation.
    action_id    uuid        PRIMARY KEY,
    tenant_id    uuid        NOT NULL,
    message_id   uuid        NOT NULL REFERENCES messages,
    -- release, deny, request: Release-QuarantineMessage. report: a user's report; submit: an admin's, with a decision.
    kind         text        NOT NULL CHECK (kind IN ('release', 'deny', 'request', 'report', 'submit')),
    -- Distinguishes actions of one kind: what is reported, a hash of the decision, `recipient` for a user's release.
    variant      text        NOT NULL DEFAULT '',
    -- Counts the requests for an action whose predecessor failed or was undone.
    generation   integer     NOT NULL,
    reported_as  text,
    -- The admin's decision, in JSON as the event carries it.
    decision     text,
    reason       text,
    -- An Actor in JSON.
    requested_by text        NOT NULL,
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
    -- True from the claim until the outcome is recorded: the next attempt first checks whether the call took effect.
    in_doubt     boolean     NOT NULL DEFAULT false,
    UNIQUE (message_id, kind, variant, generation)
);
CREATE INDEX actions_due ON actions (due_at) WHERE state = 'pending';
CREATE INDEX actions_of_report ON actions (report_id);

-- Reports of quarantined messages, from users and admins, and the case of each.
CREATE TABLE reports (
    report_id  uuid PRIMARY KEY,
    message_id uuid NOT NULL REFERENCES messages,
    case_id    uuid
);
CREATE INDEX reports_of_message ON reports (message_id);
CREATE INDEX reports_of_case ON reports (case_id);

-- What a tenant's admins chose for digests and links. A tenant without a row sends no digests.
CREATE TABLE settings (
    tenant_id  uuid        PRIMARY KEY,
    settings   jsonb       NOT NULL,
    changed_by text        NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- The periods whose digests are planned: all digests of a period in one transaction.
CREATE TABLE periods (
    tenant_id uuid        NOT NULL,
    every     text        NOT NULL,
    ended_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, every, ended_at)
);

-- One email to one recipient for one period.
CREATE TABLE digests (
    -- Derived from tenant, recipient and period.
    digest_id  uuid        PRIMARY KEY,
    tenant_id  uuid        NOT NULL,
    recipient  text        NOT NULL,
    every      text        NOT NULL,
    ended_at   timestamptz NOT NULL,
    state      text        NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'nothing', 'failed')),
    -- Graph's id of the one draft that may be sent; recorded before it is sent.
    draft_id   text,
    detail     text,
    planned_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    due_at     timestamptz NOT NULL DEFAULT now(),
    attempts   integer     NOT NULL DEFAULT 0
);
CREATE INDEX digests_due ON digests (due_at) WHERE state = 'pending';
