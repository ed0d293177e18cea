# A part of start.sh: the accounting daemon on a database of its own, with one account that root may use.
# shellcheck shell=bash disable=SC2154
export MYSQL_UNIX_PORT=$LAB/db.sock
if ! alive "$LAB/pid/mariadb.pid"; then
  [ -d "$LAB/db" ] || mariadb-install-db --user=root --datadir="$LAB/db" --auth-root-authentication-method=socket \
    --skip-test-db >"$LAB/log/mariadb.log" 2>&1
  mariadbd --no-defaults --user=root --datadir="$LAB/db" --socket="$MYSQL_UNIX_PORT" --skip-networking \
    --pid-file="$LAB/pid/mariadb.pid" </dev/null >>"$LAB/log/mariadb.log" 2>&1 &
  wait_for 30 mariadb --no-defaults -e "select 1"
fi
(
  umask 077
  cat >"$LAB/slurmdbd.conf" <<END
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$ACCOUNTING
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$LAB/munge/socket
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
LogFile=$LAB/log/slurmdbd.log
PidFile=$LAB/pid/slurmdbd.pid
END
)
alive "$LAB/pid/slurmdbd.pid" || slurmdbd
wait_for 30 sacctmgr --immediate show cluster
sacctmgr --immediate --quiet add cluster lab || true
sacctmgr --immediate --quiet add account lab || true
sacctmgr --immediate --quiet add user root account=lab || true
