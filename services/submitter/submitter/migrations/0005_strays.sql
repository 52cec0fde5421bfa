-- Microsoft's id of the submission of another mail, to which the reporter's link had led. It is nobody's verdict.
ALTER TABLE submissions ADD COLUMN stray_graph_id text;
CREATE INDEX submissions_stray ON submissions (tenant_id, stray_graph_id) WHERE stray_graph_id IS NOT NULL;
