CREATE INDEX submissions_of_case ON submissions (case_id);
