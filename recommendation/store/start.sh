#!/bin/sh
# Start PostgreSQL under any UID in group 0; the first time, make its data, roles and databases.
set -eu
# Process 1 gets only the signals that it asks for.
trap 'exit 130' INT TERM
: "${LIVE_PASSWORD:?the password of the role live is missing}"
: "${SHADOW_PASSWORD:?the password of the role shadow is missing}"

# initdb asks for the name of its user.
make_data() {
  if getent passwd "$(id -u)" >/dev/null; then
    initdb "$@"
  else
    echo "postgres:x:$(id -u):$(id -g)::/tmp:/bin/false" >/tmp/passwd
    echo "postgres:x:$(id -g):" >/tmp/group
    LD_PRELOAD=$(echo /usr/lib/*/libnss_wrapper.so) NSS_WRAPPER_PASSWD=/tmp/passwd NSS_WRAPPER_GROUP=/tmp/group \
      initdb "$@"
  fi
}

if ! [ -d "$PGDATA" ]; then
  # All is made beside it, and gets its name at the end: a first start that was cut off begins anew.
  new=$PGDATA.new
  rm -rf "$new"
  make_data --pgdata="$new" --username=postgres --auth-local=trust --auth-host=scram-sha-256 \
    --encoding=UTF8 --no-locale >/dev/null
  # Nobody else finds this server: a probe would take it for the store.
  socket=$(mktemp -d)
  pg_ctl --silent --wait --pgdata="$new" start \
    --options="-c config_file=/srv/postgresql.conf -c listen_addresses= -c unix_socket_directories=$socket"
  psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --host="$socket" --username=postgres --dbname=postgres \
    --file=/srv/init.sql
  pg_ctl --silent --wait --pgdata="$new" --mode=fast stop
  mv "$new" "$PGDATA"
fi

unset LIVE_PASSWORD SHADOW_PASSWORD
exec postgres -c config_file=/srv/postgresql.conf
