#!/usr/bin/env bash
# Makes the secrets of docker-compose.yml, once: random, one file each, in a folder that is closed to other users.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.local/docker-secrets}
mkdir -p "$folder"
chmod 700 "$folder"
random() { od -An -vtx1 -N"$1" /dev/urandom | tr -d ' \n'; }
# The files themselves are readable: Docker mounts them as they are, and a container's user is not ours.
keep() { [ -s "$folder/$1" ] || printf '%s' "$2" >"$folder/$1"; chmod 644 "$folder/$1"; }
keep postgres_password "$(random 24)"
keep redis_password "$(random 24)"
keep crowdtone_author_key "$(random 32)"
keep crowdtone_postgres_url "postgresql+psycopg2://crowdtone:$(cat "$folder"/postgres_password)@postgres:5432/crowdtone"
keep crowdtone_redis_url "redis://:$(cat "$folder"/redis_password)@redis:6379/0"
echo "secrets are in $folder"
