#!/bin/bash
# Run once by the Postgres image, as its administrator: MLflow's databases, and a role that owns them
# and can do nothing else. The password is in the file that MLFLOW_PASSWORD_FILE names.
set -euo pipefail
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
  -v password="$(cat "$MLFLOW_PASSWORD_FILE")" <<'END'
CREATE ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE auth OWNER mlflow;
REVOKE ALL ON DATABASE mlflow, auth FROM PUBLIC;
END
