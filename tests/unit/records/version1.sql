CREATE TABLE moestro_schema (version INTEGER NOT NULL);
INSERT INTO moestro_schema VALUES (1);
CREATE TABLE moestro_decisions (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	request_id TEXT NOT NULL, 
	began_at DOUBLE NOT NULL, 
	path TEXT NOT NULL, 
	caller TEXT, 
	asked TEXT NOT NULL, 
	model TEXT NOT NULL, 
	backend TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	outcome TEXT NOT NULL, 
	status INTEGER NOT NULL, 
	is_streamed BOOLEAN NOT NULL, 
	digest TEXT, 
	scores TEXT, 
	threshold DOUBLE, 
	conversation TEXT, 
	input_usd_per_mtok DOUBLE DEFAULT '0' NOT NULL, 
	output_usd_per_mtok DOUBLE DEFAULT '0' NOT NULL, 
	prompt_tokens BIGINT DEFAULT '0' NOT NULL, 
	cached_tokens BIGINT DEFAULT '0' NOT NULL, 
	completion_tokens BIGINT DEFAULT '0' NOT NULL, 
	wasted_tokens BIGINT DEFAULT '0' NOT NULL, 
	is_estimated BOOLEAN NOT NULL, 
	cost_usd DOUBLE DEFAULT '0' NOT NULL, 
	strongest_cost_usd DOUBLE, 
	first_s DOUBLE, 
	whole_s DOUBLE DEFAULT '0' NOT NULL, 
	num_attempts INTEGER DEFAULT '0' NOT NULL, 
	num_failovers INTEGER DEFAULT '0' NOT NULL, 
	error TEXT, 
	prompt TEXT, 
	answer TEXT
);
CREATE INDEX moestro_decisions_caller ON moestro_decisions (caller, id);
CREATE INDEX moestro_decisions_model ON moestro_decisions (model, id);
CREATE INDEX moestro_decisions_request ON moestro_decisions (request_id);
CREATE INDEX moestro_decisions_time ON moestro_decisions (began_at);
CREATE TABLE moestro_keys (
	name TEXT NOT NULL, 
	digest TEXT NOT NULL, 
	created_at DOUBLE NOT NULL, 
	revoked_at DOUBLE, 
	expires_at DOUBLE, 
	budget_usd DOUBLE, 
	budget_tokens BIGINT, 
	budget_period TEXT NOT NULL, 
	requests_per_minute INTEGER, 
	tokens_per_minute INTEGER, 
	concurrent_requests INTEGER, 
	allowed_models TEXT, 
	is_admin BOOLEAN NOT NULL, 
	PRIMARY KEY (name), 
	UNIQUE (digest)
);
CREATE TABLE moestro_outcomes (
	id BIGINT NOT NULL, 
	at DOUBLE NOT NULL, 
	kind TEXT NOT NULL, 
	request_id TEXT NOT NULL, 
	caller TEXT, 
	model TEXT, 
	score DOUBLE NOT NULL, 
	strongest_score DOUBLE, 
	note TEXT, 
	PRIMARY KEY (id)
);
CREATE INDEX moestro_outcomes_request ON moestro_outcomes (request_id);
CREATE TABLE moestro_spent (
	caller TEXT NOT NULL, 
	period TEXT NOT NULL, 
	cost_usd DOUBLE DEFAULT '0' NOT NULL, 
	num_tokens BIGINT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (caller, period)
);
CREATE TABLE moestro_stamps (
	name TEXT NOT NULL, 
	value BIGINT DEFAULT '0' NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE moestro_states (
	name TEXT NOT NULL, 
	version BIGINT DEFAULT '0' NOT NULL, 
	value TEXT NOT NULL, 
	at DOUBLE NOT NULL, 
	PRIMARY KEY (name)
);
CREATE TABLE moestro_usage (
	day TEXT NOT NULL, 
	caller TEXT NOT NULL, 
	model TEXT NOT NULL, 
	num_requests BIGINT DEFAULT '0' NOT NULL, 
	num_failed BIGINT DEFAULT '0' NOT NULL, 
	prompt_tokens BIGINT DEFAULT '0' NOT NULL, 
	cached_tokens BIGINT DEFAULT '0' NOT NULL, 
	completion_tokens BIGINT DEFAULT '0' NOT NULL, 
	wasted_tokens BIGINT DEFAULT '0' NOT NULL, 
	cost_usd DOUBLE DEFAULT '0' NOT NULL, 
	compared_cost_usd DOUBLE DEFAULT '0' NOT NULL, 
	strongest_cost_usd DOUBLE DEFAULT '0' NOT NULL, 
	PRIMARY KEY (day, caller, model)
);
CREATE TABLE moestro_writers (
	name TEXT NOT NULL, 
	batch BIGINT DEFAULT '0' NOT NULL, 
	at DOUBLE NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO moestro_stamps VALUES ('keys', 1), ('outcomes', 1), ('identity', 77);
INSERT INTO moestro_keys VALUES (
  'alice', 'aa55', 1795694400.0, NULL, NULL, 5.0, NULL, 'month', 60, NULL, NULL, '["small"]', 0
);
INSERT INTO moestro_spent VALUES ('alice', '2026-11', 1.5, 300);
INSERT INTO moestro_usage VALUES ('2026-11-26', 'alice', 'small', 1, 0, 100, 0, 200, 0, 1.5, 0, 0);
INSERT INTO moestro_decisions (
  request_id, began_at, path, caller, asked, model, backend, reason, outcome, status, is_streamed,
  is_estimated, scores, cost_usd
) VALUES (
  'r1', 1795694400.0, '/v1/completions', 'alice', 'auto', 'small', 'small/0', 'policy', 'answered',
  200, 0, 0, '{"small": 0.5}', 1.5
);
INSERT INTO moestro_outcomes VALUES (1, 1795694400.0, 'score', 'r1', 'alice', 'small', 0.5, NULL, NULL);
INSERT INTO moestro_states VALUES ('floor', 3, '{"seen": 1}', 1795694400.0);
