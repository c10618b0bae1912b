-- Two databases: what v1 writes for callers, and what v2 writes as a shadow. Neither role gets into the other's.
\getenv live LIVE_PASSWORD
\getenv shadow SHADOW_PASSWORD

CREATE ROLE live LOGIN PASSWORD :'live';
CREATE ROLE shadow LOGIN PASSWORD :'shadow';
CREATE DATABASE live OWNER live;
CREATE DATABASE shadow OWNER shadow;
REVOKE ALL ON DATABASE live, shadow, postgres, template1 FROM PUBLIC;

-- Reads both. Without a password it comes in by the local socket only.
CREATE ROLE reader LOGIN;
ALTER ROLE reader SET default_transaction_read_only = on;
GRANT CONNECT ON DATABASE live, shadow TO reader;
GRANT pg_read_all_data TO reader;
