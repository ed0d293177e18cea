#!/usr/bin/env bash
# Images made of Debian packages, for machines that reach no image registry. Needs root, debootstrap and podman.
#   stand_ins.sh base      localhost/etd-ds-base       stands in for python:3.11-slim-bookworm
#   stand_ins.sh postgres  localhost/etd-ds-postgres   stands in for postgres:17.6-bookworm, with PostgreSQL 15
# What is there already stays as it is. BUILD_OPTIONS go to `podman build`.
set -euo pipefail

base() {
  podman image exists localhost/etd-ds-base && return
  local root mirror
  root=$(mktemp -d)
  # often there is only one of the two files
  mirror=$(sed -nE 's/^(URIs:|deb) +([a-z]+:[^ ]+).*/\2/p' /etc/apt/sources.list.d/debian.sources \
    /etc/apt/sources.list 2>/dev/null | head -1) || true
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv bookworm "$root" "$mirror"
  ln -s /usr/bin/python3 "$root/usr/local/bin/python"
  tar -C "$root" -c . | podman import --change "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    - localhost/etd-ds-base
  rm -rf "$root"
}

postgres() {
  base
  podman image exists localhost/etd-ds-postgres && return
  local folder
  folder=$(mktemp -d)
  cat >"$folder/start" <<'END'
#!/bin/bash
# the part of the official image's entry point that a new, empty volume needs
set -euo pipefail
export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --encoding=UTF8 --locale=C.UTF-8 --username="$POSTGRES_USER" --pwfile=<(echo "$POSTGRES_PASSWORD") \
    --auth-local=trust --auth-host=scram-sha-256
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D "$PGDATA" postgres
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -k /tmp
END
  chmod +x "$folder/start"
  cat >"$folder/Dockerfile" <<'END'
FROM localhost/etd-ds-base
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-15 \
 && install -d -o postgres -m 700 /var/lib/postgresql/data
COPY start /usr/local/bin/start
ENV PGHOST=/tmp PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin
USER postgres
ENTRYPOINT ["start"]
END
  # shellcheck disable=SC2086  # several options
  podman build ${BUILD_OPTIONS:-} --tag localhost/etd-ds-postgres "$folder"
  rm -rf "$folder"
}

"$1"
