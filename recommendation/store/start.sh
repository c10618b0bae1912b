#!/bin/sh
# Start PostgreSQL under any UID in group 0; the first time, copy its empty data, and make roles and databases.
set -eu
# Process 1 gets only the signals that it asks for.
trap 'exit 130' INT TERM
: "${LIVE_PASSWORD:?the password of the role live is missing}"
: "${SHADOW_PASSWORD:?the password of the role shadow is missing}"

if ! [ -d "$PGDATA" ]; then
  # All is made beside it, and gets its name at the end: a first start that was cut off begins anew. So
  # nothing of it need wait for the disk.
  new=$PGDATA.new
  rm -rf "$new"
  cp -r /srv/data "$new"
  chmod 700 "$new"
  # Nobody else finds this server: a probe would take it for the store.
  socket=$(mktemp -d)
  pg_ctl --silent --wait --pgdata="$new" start \
    --options="-c config_file=/srv/postgresql.conf -c listen_addresses= -c unix_socket_directories=$socket -c fsync=off"
  psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --host="$socket" --username=postgres --dbname=postgres \
    --file=/srv/init.sql
  pg_ctl --silent --wait --pgdata="$new" --mode=fast stop
  mv "$new" "$PGDATA"
fi

unset LIVE_PASSWORD SHADOW_PASSWORD
exec postgres -c config_file=/srv/postgresql.conf
