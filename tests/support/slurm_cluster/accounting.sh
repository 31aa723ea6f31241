# Sourced by start.sh: a database that is thrown away in the end (nothing is ever synced), slurmdbd, and one account.
user=$(id -un)
mkdir "$state/db"
thrifty=(--innodb-flush-method=nosync --innodb-log-file-size=8M --innodb-doublewrite=0 --sync-frm=0)
mariadb-install-db --no-defaults --user="$user" --datadir="$state/db" --skip-test-db \
  --auth-root-authentication-method=socket "${thrifty[@]}" >"$state/database.log" 2>&1 || fail "no database could be made"
cat >"$state/accounts.sql" <<SQL
CREATE DATABASE slurm_acct_db;
CREATE USER IF NOT EXISTS '$user'@'localhost' IDENTIFIED VIA unix_socket;
GRANT ALL ON slurm_acct_db.* TO '$user'@'localhost';
SQL
setsid mariadbd --no-defaults --user="$user" --datadir="$state/db" --socket="$state/database.sock" --skip-networking \
  --pid-file="$state/mariadbd.pid" --init-file="$state/accounts.sql" --log-error="$state/database.log" "${thrifty[@]}" \
  --innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 >/dev/null 2>&1 </dev/null &
wait_for 30 "the database" mariadb --no-defaults --socket="$state/database.sock" -e 'use slurm_acct_db'

(umask 077; cat >"$state/slurmdbd.conf") <<CONF
AuthType=auth/munge
AuthInfo=socket=$state/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((CLUSTER_PORT + 3))
CommunicationParameters=NoInAddrAny
SlurmUser=$user
PidFile=$state/slurmdbd.pid
LogFile=$state/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=$user
StorageLoc=slurm_acct_db
CONF
MYSQL_UNIX_PORT="$state/database.sock" slurmdbd
wait_for 30 slurmdbd sacctmgr -n show cluster
sacctmgr -i -Q add cluster whitebench >/dev/null
sacctmgr -i -Q add account whitebench Cluster=whitebench >/dev/null
sacctmgr -i -Q add user "$user" Account=whitebench >/dev/null
