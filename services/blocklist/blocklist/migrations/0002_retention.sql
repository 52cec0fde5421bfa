-- True when the case is gone: the row goes too, as soon as nothing in Exchange can be its doing any more.
ALTER TABLE blocks ADD COLUMN case_expired boolean NOT NULL DEFAULT false;
