-- When the last call went out that was never answered. `sent_at` is set back to it when the submission has to wait, so
-- that what was once missing in Microsoft's list is looked for before each later call, too.
ALTER TABLE submissions ADD COLUMN unanswered_at timestamptz;
