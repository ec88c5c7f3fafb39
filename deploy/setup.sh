#!/usr/bin/env bash
# Brings a bare machine (Debian 12) to where everything runs: servers, Python environment, Kafka's jars.
# `deploy/setup.sh` for running, `deploy/setup.sh --tests` for the tests as well. Does only what is missing and says
# what it does; what it cannot do it names, with the command to do it, and stops.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
CACHE=${CROWDTONE_CACHE_DIR:-$HOME/.cache/crowdtone}
TESTS=${1:-}
uv_version=$(sed -nE 's/^uv==([^ ;]+).*/\1/p' requirements.lock)
kafka=$CACHE/kafka-$(sha256sum deploy/kafka/pom.xml | cut -c1-12)

say() { printf '\033[1msetup\033[0m %s\n' "$*"; }
stop() { printf '\033[31msetup\033[0m %s\n' "$@" >&2; exit 1; }

# Debian packages for the programs that are missing. --------------------------------------------------------------
java_is_new_enough() {
  local version
  version=$(java -version 2>&1 | sed -nE 's/.*version "([0-9]+).*/\1/p' | head -n1)
  [ "${version:-0}" -ge 17 ]
}
postgres_is_new_enough() {
  local folder
  for folder in /usr/lib/postgresql/*/bin/postgres; do
    [ -x "$folder" ] && folder=${folder#/usr/lib/postgresql/} && [ "${folder%%/*}" -ge 15 ] && return 0
  done
  return 1
}
python_is_fit() {
  python3 -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null
}

needed=()
java_is_new_enough || needed+=(default-jre-headless)
[ -d "$kafka" ] || command -v mvn >/dev/null || needed+=(maven)
postgres_is_new_enough || needed+=(postgresql)
command -v redis-server >/dev/null || needed+=(redis-server)
command -v setpriv >/dev/null || needed+=(util-linux)
[ -x "$VENV/bin/python" ] || python_is_fit || needed+=(python3-venv)
if [ "$TESTS" = --tests ]; then
  command -v chromium >/dev/null || needed+=(chromium fonts-dejavu-core)
  command -v gcc >/dev/null && [ -e /usr/include/dlfcn.h ] || needed+=(gcc libc6-dev)
fi

if [ ${#needed[@]} -gt 0 ]; then
  by_hand="apt-get install --no-install-recommends ${needed[*]}"
  command -v apt-get >/dev/null ||
    stop "missing: ${needed[*]} (Debian's names), and there is no apt-get here. Install Java 17, Maven," \
      "PostgreSQL 15, Redis 7 and Python 3.11 or 3.12 with venv in this system's way, then run this again."
  [ "$(id -u)" = 0 ] || stop "missing: ${needed[*]}. Only root can install them; run, then try again:" "  sudo $by_hand"
  say "installing Debian packages: ${needed[*]}"
  # Debian starts a database server as soon as it is installed. We run our own, so this says no for as long as we
  # install, and what was installed by us is not started at the next boot either.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    trap 'rm -f $policy' EXIT
  fi
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${needed[@]}"; } >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; stop "apt-get failed (see above, all of it in $log). By hand:" "  $by_hand"; }
  rm -f "$log"
  for package in "${needed[@]}"; do
    case $package in postgresql | redis-server)
      command -v systemctl >/dev/null && systemctl disable --quiet "$package" 2>/dev/null || true ;;
    esac
  done
  java_is_new_enough || stop "java is older than 17: update-alternatives --config java"
  [ -x "$VENV/bin/python" ] || python_is_fit ||
    stop "python3 is $(python3 -V 2>&1); Python 3.11 or 3.12 with venv is needed (Debian 12 has 3.11)"
fi

# The Python environment, exactly as requirements.lock has it. -------------------------------------------------------
stamp=$VENV/setup.sha256
state=$(cat requirements.lock deploy/setup.sh pyproject.toml | sha256sum)
if [ "$(cat $stamp 2>/dev/null)" != "$state" ]; then
  # Without pip, making it was interrupted.
  if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    say "creating $VENV with $(python3 -V)"
    python3 -m venv --clear "$VENV"
  fi
  say "installing the Python packages of requirements.lock (5 GB on disk, of that 4 GB for torch; minutes at first)"
  [ "$("$VENV/bin/uv" --version 2>/dev/null | cut -d' ' -f2)" = "$uv_version" ] ||
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
  "$VENV/bin/uv" pip sync --quiet --python "$VENV/bin/python" --require-hashes requirements.lock
  "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --no-deps --no-build-isolation --editable .
  # Of 16,000 modules the 2,000 that commands and services import. Where PYTHONDONTWRITEBYTECODE is set, every process
  # would compile them again: 36 CPU seconds instead of 21 to import the seven services one by one.
  say "compiling what commands and services import"
  env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -c '
import alembic.command, faust
faust.App  # faust loads the rest of itself when it is first asked for something
from importlib import import_module
from pathlib import Path
from services import cli
for entry in cli.ENTRIES: cli.load(entry)
for path in sorted(Path("services").glob("*/__main__.py")): import_module(".".join(path.with_suffix("").parts))'
  echo "$state" >$stamp
fi

# Apache Kafka. ------------------------------------------------------------------------------------------------------
if [ ! -f "$kafka/classes.jsa" ]; then
  say "resolving Apache Kafka's jars with Maven, and starting it once to keep its classes"
  "$VENV/bin/python" -m deploy.local.kafka || stop "Kafka is not ready (see above)"
fi
