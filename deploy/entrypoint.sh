#!/usr/bin/env bash
# The image's entry: entrypoint.sh connect|master|worker|executor [ARGUMENT...], or any other command as it is.
# `executor` is what Spark on Kubernetes calls in the pods it makes; it describes the executor in environment variables.
set -euo pipefail

role=${1:-}
(($#)) && shift
case $role in
  connect)
    # An empty token would leave the port open to everyone who reaches it, and the token gives the right to run code.
    : "${SPARK_CONNECT_AUTHENTICATE_TOKEN:?the Connect server needs a token in the environment}"
    ((${#SPARK_CONNECT_AUTHENTICATE_TOKEN} >= 32)) || { echo 'the token must have at least 32 characters' >&2; exit 1; }
    command=("$SPARK_HOME/bin/spark-submit" --class org.apache.spark.sql.connect.service.SparkConnectServer "$@" spark-internal)
    ;;
  master)
    command=("$SPARK_HOME/bin/spark-class" org.apache.spark.deploy.master.Master "$@")
    ;;
  worker)
    command=("$SPARK_HOME/bin/spark-class" org.apache.spark.deploy.worker.Worker "$@")
    ;;
  executor)
    options=()
    for ((number = 0; ; number++)); do
      name=SPARK_JAVA_OPT_$number
      [[ -n ${!name+set} ]] || break
      options+=("${!name}")
    done
    command=("${JAVA_HOME:?}/bin/java" "${options[@]}" "-Xms${SPARK_EXECUTOR_MEMORY:?}" "-Xmx$SPARK_EXECUTOR_MEMORY"
      -cp "${SPARK_CONF_DIR:?}:${SPARK_CLASSPATH:+$SPARK_CLASSPATH:}$SPARK_HOME/jars/*"
      org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend
      --driver-url "${SPARK_DRIVER_URL:?}" --executor-id "${SPARK_EXECUTOR_ID:?}" --cores "${SPARK_EXECUTOR_CORES:?}"
      --app-id "${SPARK_APPLICATION_ID:?}" --hostname "${SPARK_EXECUTOR_POD_IP:?}"
      --resourceProfileId "${SPARK_RESOURCE_PROFILE_ID:?}" --podName "${SPARK_EXECUTOR_POD_NAME:?}")
    ;;
  '')
    echo 'usage: entrypoint.sh connect|master|worker|executor [ARGUMENT...]' >&2
    exit 2
    ;;
  *)
    command=("$role" "$@")
    ;;
esac
# tini is process 1: it passes signals on and takes up orphans, which a JVM would leave as zombies.
exec tini -s -- "${command[@]}"
