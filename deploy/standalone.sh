#!/usr/bin/env bash
# standalone.sh start|stop|status [--dir DIR] [--python PYTHON] [--workers 2] [--cores 2] [--deadline 120] [--conf KEY=VALUE]...
#
# A whole cluster on the loopback address for trials and tests: Spark's standalone master, workers with one executor each, and
# a Connect server with sparkgap in it, all from the pyspark that PYTHON has (default: the checkout's .venv, else python3).
#
# start   prints one line on stdout, sc://localhost:PORT/;token=TOKEN, and keeps the same in DIR/url; all else goes to stderr.
#         DIR must be new or empty; without --dir it is a fresh temporary folder. Each part has --deadline seconds to come up.
# stop    ends every process that start caused, executors and their children too, and removes what start wrote.
# status  says what runs; exit status 3 if not everything does.
set -euo pipefail
umask 077

readonly stop_seconds=20

say() { printf '%s\n' "$*" >&2; }
die() { say "standalone.sh: $*"; exit 1; }
usage() { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# ---- processes: each carries a mark in its environment, which everything that it starts inherits ----

part_mark() { printf 'SPARKGAP_STANDALONE=%s:%s' "$dir" "$1"; }

members() {  # NAME: the ids of all living processes of a part; a zombie's environment reads as empty
  local file
  { grep -lzxFs -- "$(part_mark "$1")" /proc/[0-9]*/environ || true; } |
    while IFS=/ read -r _ _ file _; do printf '%s\n' "$file"; done
}

leader() {  # NAME: the id of the process that start began, if it lives
  [[ -f $dir/pid/$1 ]] || return 1
  members "$1" | grep -xF -- "$(<"$dir/pid/$1")"
}

spawn() {  # NAME COMMAND...: descriptor 3 is our caller's stdout; a daemon that kept it would keep $(standalone.sh start) waiting
  local name=$1
  shift
  local -x SPARKGAP_STANDALONE=$dir:$name
  setsid "$@" </dev/null >"$dir/log/$name" 2>&1 3>&- &
  printf '%s\n' "$!" >"$dir/pid/$name"
}

give_up() {  # NAME MESSAGE
  say "standalone.sh: $1: $2"
  say "---- the end of its log ----"
  tail -n 40 "$dir/log/$1" >&2
  exit 1
}

await() {  # NAME WHAT COMMAND...: until COMMAND succeeds
  local name=$1 what=$2 until=$((SECONDS + deadline))
  shift 2
  until "$@"; do
    # A process that has not yet come as far as its exec carries no mark, but is a child of ours.
    kill -0 "$(<"$dir/pid/$name")" 2>/dev/null || give_up "$name" "ended before $what"
    ((SECONDS < until)) || give_up "$name" "not within $deadline seconds: $what"
    sleep 0.1
  done
}

logged() { grep -qE -- "$2" "$dir/log/$1"; }
logged_times() { (($(grep -cE -- "$2" "$dir/log/$1") >= $3)); }

parts() { local file; for file in "$dir"/pid/*; do [[ ! -e $file ]] || basename "$file"; done; }

leaders() { local name; for name; do leader "$name" || true; done; }
all_members() { local name; for name; do members "$name"; done; }

send() {  # SIGNAL: to the processes named on stdin; one that has just ended is no failure
  local ids
  mapfile -t ids
  if ((${#ids[@]})); then kill "-$1" "${ids[@]}" 2>/dev/null || true; fi
}

end_parts() {  # NAME...: SIGTERM to the leaders, then to what outlives them, SIGKILL to what is left at the deadline
  local until=$((SECONDS + stop_seconds)) sent=leaders left
  leaders "$@" | send TERM
  while left=$(all_members "$@") && [[ -n $left ]]; do
    if [[ $sent == leaders && -z $(leaders "$@") ]]; then
      sent=orphans
      all_members "$@" | send TERM
    elif ((SECONDS >= until)); then
      [[ $sent != kill ]] || { say "standalone.sh: still alive after SIGKILL: ${left//$'\n'/ }"; return 1; }
      say "standalone.sh: SIGKILL after $stop_seconds seconds: ${left//$'\n'/ }"
      sent=kill until=$((SECONDS + stop_seconds))
    fi
    [[ $sent != kill ]] || all_members "$@" | send KILL
    sleep 0.1
  done
}

stop_all() {
  local names
  # The server first: its end lets the executors close down by themselves, which a dying worker would cut short.
  end_parts server
  mapfile -t names < <(parts)
  end_parts "${names[@]}"
  local made
  made=$(<"$dir/standalone")
  rm -rf -- "$dir"/{conf,java,local,log,pid,ready,run,sparkgap.jar,standalone,url,warehouse,work}
  [[ $made == given ]] || rmdir -- "$dir"
}

# ---- start ----

prepare_folder() {
  local made=given
  if [[ -z $dir ]]; then
    dir=$(mktemp -d "${TMPDIR:-/tmp}/sparkgap-XXXXXX")
    made=created
  elif mkdir -- "$dir" 2>/dev/null; then
    made=created
  fi
  [[ -d $dir ]] || die "cannot make the folder $dir"
  dir=$(cd "$dir" && pwd -P)
  [[ -z $(ls -A -- "$dir") ]] || die "$dir is not empty; if an earlier start left that there, 'stop --dir $dir' removes it"
  if [[ ! $dir =~ ^[[:alnum:]/._+@-]+$ ]]; then
    [[ $made == given ]] || rmdir -- "$dir"
    die "$dir: for Spark's properties files, the folder's path may hold only letters, digits and /._+@-"
  fi
  mkdir "$dir"/pid  # fails where another start was faster
  trap abandon EXIT
  trap 'exit 130' INT TERM
  printf '%s\n' "$made" >"$dir/standalone"
  chmod 0700 -- "$dir"
  mkdir "$dir"/{conf,java,java/bin,local,log,run,warehouse,work}
}

abandon() {
  local code=$?
  trap - EXIT
  trap '' INT TERM
  jobs -p | send TERM  # a child that has not come as far as its exec carries no mark yet
  stop_all || true
  exit "$code"
}

find_spark() {
  local found
  found=$(command -v -- "$python") || die "no such Python: $python"
  # Absolute, but with its last link kept: that link is what makes a virtual environment.
  python=$(cd "$(dirname "$found")" && pwd)/$(basename "$found")
  SPARK_HOME=$("$python" -c 'import importlib.util as u, pathlib; s = u.find_spec("pyspark"); print(pathlib.Path(s.origin).parent if s else "")')
  [[ -n $SPARK_HOME && -d $SPARK_HOME/jars ]] || die "$python has no pyspark with its jars: install pyspark, not pyspark-client"
}

make_java() {  # Spark's launcher gives every JVM --add-modules=jdk.incubator.vector, and a runtime without that module refuses to start
  local home
  home=$("$python" -m sparkgap_server java-home) || die "no Java for Spark; see above"
  {
    printf '#!/usr/bin/env bash\n'
    printf 'real=%q\n' "$home/bin/java"
    cat <<'WRAPPER'
for option; do
  shift
  [[ $option == --add-modules=jdk.incubator.vector ]] || set -- "$@" "$option"
done
exec "$real" "$@"
WRAPPER
  } >"$dir/java/bin/java"
  chmod 0700 "$dir/java/bin/java"
}

write_conf() {  # of several lines for one key Spark takes the last
  {
    cat "$here/spark-defaults.conf"
    cat <<CONF

# By standalone.sh:
spark.jars                         $dir/sparkgap.jar
spark.sparkgap.readyFile           $dir/ready
spark.connect.grpc.binding.address 127.0.0.1
spark.connect.grpc.binding.port    0
spark.driver.host                  127.0.0.1
spark.executor.cores               $cores
spark.cores.max                    $((cores * workers))
spark.local.dir                    $dir/local
spark.sql.warehouse.dir            $dir/warehouse
spark.ui.enabled                   false
spark.master.rest.enabled          false
# The token guards the Connect port only; this keeps other users of the machine away from the master's and executors' ports.
spark.authenticate                 true
spark.authenticate.secret          $(random)
CONF
    local setting
    for setting in "${conf[@]}"; do printf '%s %s\n' "${setting%%=*}" "${setting#*=}"; done
  } >"$dir/conf/spark-defaults.conf"
}

random() { "$python" -c 'import secrets; print(secrets.token_urlsafe(32))'; }

start() {
  local token port master number
  exec 3>&1 >&2
  # A caller's own Spark settings (SPARK_CONF_DIR, SPARK_REMOTE, a token, ...) are for another cluster.
  unset "${!SPARK_@}" "${!PYSPARK_@}"
  find_spark
  prepare_folder
  say "standalone.sh: folder $dir"
  make_java
  "$python" -m sparkgap_server jar --output "$dir/sparkgap.jar" || die "the shim could not be made; see above"
  write_conf
  export SPARK_HOME SPARK_CONF_DIR=$dir/conf SPARK_LOCAL_IP=127.0.0.1 SPARK_WORKER_DIR=$dir/work SPARK_DAEMON_MEMORY=512m
  export JAVA_HOME=$dir/java PYSPARK_PYTHON=$python
  cd "$dir/run"

  spawn master "$SPARK_HOME/bin/spark-class" org.apache.spark.deploy.master.Master --host 127.0.0.1 --port 0 --webui-port 0
  await master "it named its port" logged master 'Starting Spark master at spark://[^ ]+$'
  master=$(sed -nE 's/.*Starting Spark master at (spark:[^ ]+)$/\1/p' "$dir/log/master")
  # Each worker has a loopback address of its own, which makes it a host of its own for Spark: locality and speculation tell them apart.
  for ((number = 1; number <= workers; number++)); do
    SPARK_LOCAL_IP=127.0.0.$number spawn "worker-$number" "$SPARK_HOME/bin/spark-class" org.apache.spark.deploy.worker.Worker \
      --host "127.0.0.$number" --port 0 --webui-port 0 --cores "$cores" --memory 1g "$master"
  done
  token=$(random)
  SPARK_CONNECT_AUTHENTICATE_TOKEN=$token spawn server "$SPARK_HOME/bin/spark-submit" \
    --class org.apache.spark.sql.connect.service.SparkConnectServer --master "$master" spark-internal
  for ((number = 1; number <= workers; number++)); do
    await "worker-$number" "it registered with the master" logged "worker-$number" 'Successfully registered with master'
  done
  await server "it accepted connections" test -s "$dir/ready"
  port=$(<"$dir/ready")
  [[ $port =~ ^[0-9]+$ ]] || give_up server "its ready file holds no port: $port"
  # A barrier job that finds too few slots looks again only after 15 seconds, so the URL is given out when all executors are there.
  await server "$workers executors registered" logged_times server 'Registered executor ' "$workers"

  printf 'sc://localhost:%s/;token=%s\n' "$port" "$token" >"$dir/url"
  say "standalone.sh: $workers executors with $cores cores each; end it with: $0 stop --dir $dir"
  trap - EXIT INT TERM
  cat "$dir/url" >&3
}

# ---- stop and status ----

find_folder() {
  [[ -n $dir ]] || die "$command needs --dir DIR, the folder that start named"
  if [[ ! -f $dir/standalone ]]; then
    say "standalone.sh: nothing was started in $dir"
    exit "$1"
  fi
  dir=$(cd "$dir" && pwd -P)
}

stop() {
  find_folder 0
  stop_all
  say "standalone.sh: stopped"
}

status() {
  local name id all=0
  find_folder 3
  for name in $(parts); do
    if id=$(leader "$name"); then
      printf '%-10s runs, process %s, %s in all\n' "$name" "$id" "$(members "$name" | wc -l)"
    else
      printf '%-10s does not run\n' "$name"
      all=3
    fi
  done
  if [[ ! -f $dir/url ]]; then
    printf 'still starting\n'
    all=3
  fi
  return "$all"
}

number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 takes a number from 1 up, not '$2'"; printf '%s' "$2"; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
command=${1:-}
dir='' workers=2 cores=2 deadline=120 conf=() python=$here/../.venv/bin/python
[[ -x $python ]] || python=python3
[[ $command =~ ^(start|stop|status)$ ]] || usage
shift
while (($#)); do
  (($# >= 2)) || usage
  case $1 in
    --dir) dir=$2 ;;
    --python) python=$2 ;;
    --workers) workers=$(number "$1" "$2") ;;
    --cores) cores=$(number "$1" "$2") ;;
    --conf) [[ $2 == spark.*=* ]] || die "--conf takes spark.KEY=VALUE, not '$2'"; conf+=("$2") ;;
    --deadline) deadline=$(number "$1" "$2") ;;
    *) usage ;;
  esac
  shift 2
done
"$command"
