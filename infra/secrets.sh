#!/usr/bin/env bash
# Makes the secrets of compose.yaml and kube/ in infra/secrets, where they are not there yet. The folder
# is its owner's alone; git ignores it. Files in it are readable, because containers have other users.
set -euo pipefail
cd "$(dirname "$0")"
umask 077; mkdir -p secrets; cd secrets; chmod 700 .
new() { head -c 64 /dev/urandom | base64 | tr -dc 'a-zA-Z0-9' | head -c "${1:-40}"; }
make() { [ -s "$1" ] || { printf '%s' "$2" >"$1.part" && chmod 644 "$1.part" && mv "$1.part" "$1"; }; }
keys() { printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$(new 20)" "$(new 40)"; }
make ray_token "$(new 64)"
make postgres_admin "$(new)"
make postgres_mlflow "$(new)"
make mlflow_admin "$(new 24)"
make mlflow_flask "$(new)"
make mlflow_trainer "$(new 24)"
make mlflow_promoter "$(new 24)"
make s3_forger "$(keys)"
make s3_mlflow "$(keys)"
