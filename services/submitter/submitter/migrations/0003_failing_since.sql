-- Since when every call has failed, Microsoft being away or not letting us; null after a wait for anything else.
ALTER TABLE submissions ADD COLUMN failing_since timestamptz;
