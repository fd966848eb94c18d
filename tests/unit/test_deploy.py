"""Reads deploy/ as an operator's tools would, and runs its scripts against stand-ins; no Docker, cluster or JVM."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
YAML = [DEPLOY / "compose.yaml", *MANIFESTS]
TEXTS = sorted(p for p in DEPLOY.rglob("*") if p.is_file() and "__pycache__" not in p.parts)

PACKAGE = "org.apache.spark.sql.connect.sparkgap"
EXTENSION = {
    "spark.plugins": f"{PACKAGE}.SparkgapPlugin",
    "spark.sql.extensions": f"{PACKAGE}.SparkgapRules",
    "spark.connect.extensions.command.classes": f"{PACKAGE}.SparkgapCommands",
    "spark.connect.extensions.expression.classes": f"{PACKAGE}.SparkgapExpressions",
    "spark.connect.extensions.getStatus.classes": f"{PACKAGE}.SparkgapStatus",
}
OPTIONAL_KEYS = {
    "spark.sparkgap.python",
    "spark.sparkgap.ignoreSsl",
    "spark.sparkgap.threads.timeout",
    "spark.sparkgap.queue.patience",
    "spark.sparkgap.queue.max",
    "spark.sparkgap.result.maxBytes",
    "spark.sparkgap.events.maxBytes",
    "spark.sparkgap.runs.keptBytes",
    "spark.sparkgap.runs.kept",
    "spark.sparkgap.runs.dir",
    "spark.sparkgap.runs.maxAge",
    "spark.sparkgap.runs.maxBytes",
    "spark.sparkgap.batch.maxBytes",
    "spark.sparkgap.model.maxBytes",
    "spark.sparkgap.model.keptBytes",
}
SESSION_KEYS = {"spark.sparkgap.predict.direct"}
OWN_KEYS = {"spark.sparkgap.readyFile", *OPTIONAL_KEYS, *SESSION_KEYS}
TOKEN = "SPARK_CONNECT_AUTHENTICATE_TOKEN"

yaml_rules = YamlLintConfig(
    "{extends: default, rules: {line-length: {max: 160}, document-start: disable, comments-indentation: disable}}"
)


def properties(text):
    pairs = (line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {key: value.strip() for key, value in pairs}


def commented_keys(text):
    return set(re.findall(r"^\s*# (?:- --conf=)?(spark\.[\w.]+)[\s=]+\S+$", text, re.M))


def confs(arguments):
    """The --conf of a command line; a key given twice is an error that Spark would not report."""
    pairs = [a.removeprefix("--conf=").split("=", 1) for a in arguments if a.startswith("--conf=")]
    assert len({key for key, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


def instructions(dockerfile):
    lines = "\n".join(line for line in dockerfile.splitlines() if not line.startswith("#"))
    return [tuple(line.split(None, 1)) for line in re.sub(r"\\\n\s*", "", lines).splitlines() if line.strip()]


def stages(dockerfile):
    found = {}
    for name, argument in instructions(dockerfile):
        if name == "FROM":
            current = found.setdefault(argument.split(" AS ")[1], [])
        elif found:
            current.append((name, argument))
    return found


@pytest.fixture(scope="module")
def defaults():
    return (DEPLOY / "spark-defaults.conf").read_text()


@pytest.fixture(scope="module")
def standalone():
    return (DEPLOY / "standalone.sh").read_text()


@pytest.fixture(scope="module")
def dockerfile():
    return (DEPLOY / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


@pytest.fixture(scope="module")
def objects():
    loaded = [o for path in MANIFESTS for o in yaml.safe_load_all(path.read_text())]
    found = {(o["kind"], o["metadata"]["name"]): o for o in loaded}
    assert len(found) == len(loaded), "two objects share kind and name"
    return found


@pytest.fixture(scope="module")
def server_pod(objects):
    return objects["Deployment", "sparkgap-server"]["spec"]["template"]


@pytest.fixture(scope="module")
def server(server_pod):
    (container,) = server_pod["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def executor_pod(objects):
    return yaml.safe_load(objects["ConfigMap", "sparkgap-executor"]["data"]["pod.yaml"])


# ---- every file ----


@pytest.mark.parametrize("path", YAML, ids=lambda p: p.name)
def test_yaml_is_clean(path):
    assert [str(p) for p in linter.run(path.read_text(), yaml_rules)] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_run_and_pass_shellcheck(path):
    assert path.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", path], check=True)
    found = subprocess.run([Path(sys.executable).parent / "shellcheck", path], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_no_file_names_a_secret_or_a_host_of_its_author(path):
    text = path.read_text()
    assert re.findall(r"(?:token|secret|password)['\"]?\s*[=:]\s*['\"]?[\w-]{16,}", text, re.I) == []
    assert set(re.findall(r"https?://([\w.-]+)", text)) <= {"kubernetes.default.svc"}
    assert re.findall(r"(?:^|[\s\"'=])/(?:work|home(?!/sparkgap)|root|Users)/", text) == []


def test_our_class_names_and_keys_are_spelled_one_way():
    classes, keys = set(), set()
    for path in TEXTS:
        classes |= set(re.findall(rf"{re.escape(PACKAGE)}\.\w+", path.read_text()))
        keys |= set(re.findall(r"spark\.sparkgap\.\w+(?:\.\w+)*", path.read_text()))
    assert classes == set(EXTENSION.values())
    assert keys == OWN_KEYS


def test_the_shim_has_the_classes_that_are_named():
    sources = "".join(p.read_text() for p in (ROOT / "server_ext").rglob("*.scala"))
    assert {c.rpartition(".")[2] for c in EXTENSION.values()} <= set(re.findall(r"^class (\w+)", sources, re.M))


# ---- the settings ----


def test_defaults_switch_on_the_extension_and_nothing_else(defaults):
    assert properties(defaults) == {"spark.jars": "/opt/sparkgap/sparkgap.jar", **EXTENSION}


def test_defaults_offer_gpus_overhead_and_python_commented_out(defaults):
    wanted = {
        f"spark.{role}.resource.gpu.{what}" for role in ("executor", "worker") for what in ("amount", "discoveryScript")
    }
    assert commented_keys(defaults) == wanted | {
        "spark.executor.resource.gpu.vendor",
        "spark.task.resource.gpu.amount",
        "spark.executor.memoryOverhead",
        *OPTIONAL_KEYS,
    }


def test_the_settings_that_are_named_exist():
    settings = "".join(path.read_text() for path in (ROOT / "server_ext" / "jvm").glob("*.scala"))
    assert set(re.findall(r'"(spark\.sparkgap\.[\w.]+)"', settings)) >= OWN_KEYS


def test_standalone_takes_the_extension_from_the_defaults_and_does_not_override_it(standalone):
    assert 'cat "$here/spark-defaults.conf"' in standalone
    written = properties(re.search(r"<<CONF\n(.*?)\nCONF\n", standalone, re.S)[1])
    assert written.keys().isdisjoint(EXTENSION)
    assert written["spark.sparkgap.readyFile"] == "$dir/ready"
    assert written["spark.jars"] == "$dir/sparkgap.jar"
    assert written["spark.connect.grpc.binding.address"] == "127.0.0.1"
    assert written["spark.connect.grpc.binding.port"] == "0"


def test_containers_take_the_extension_from_the_image(services, server):
    for arguments in (services["connect"]["command"], server["args"]):
        assert confs(arguments).keys().isdisjoint({"spark.jars", *EXTENSION})
        assert all(key.startswith("spark.") for key in confs(arguments))


def test_kubernetes_offers_the_gpu_lines_of_the_defaults(defaults):
    offered = commented_keys((DEPLOY / "kubernetes/server.yaml").read_text())
    assert offered == {k for k in commented_keys(defaults) if "resource.gpu" in k and ".worker." not in k}


# ---- the image ----


def test_dockerfile_has_known_instructions_and_ends_with_the_server(dockerfile):
    known = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "CMD", "ENV", "ENTRYPOINT"}
    assert {name for name, _ in instructions(dockerfile)} == known
    assert list(stages(dockerfile)) == ["wheel", "client", "server"]
    assert all(a.startswith("${PYTHON_IMAGE} AS ") for name, a in instructions(dockerfile) if name == "FROM")
    assert instructions(dockerfile)[0] == ("ARG", "PYTHON_IMAGE=python:3.11-slim-bookworm")
    assert "SPARK_HOME=/usr/local/lib/python3.11/" in dockerfile


@pytest.mark.parametrize("stage", ["client", "server"])
def test_images_run_as_a_user_who_cannot_change_them(dockerfile, stage):
    steps = stages(dockerfile)[stage]
    (user,) = [i for i, (name, _) in enumerate(steps) if name == "USER"]
    assert int(steps[user][1]) > 0
    assert f"useradd --uid {steps[user][1]} " in steps[user - 1][1]
    assert {name for name, _ in steps[user + 1 :]} <= {"WORKDIR", "ENTRYPOINT", "CMD"}


def test_image_copies_files_that_exist_and_runs_one_of_them(dockerfile):
    copied = set()
    for name, argument in instructions(dockerfile):
        if name == "COPY" and "--from=" not in argument and argument != ". .":
            *sources, target = [a for a in argument.split() if not a.startswith("--")]
            assert all((ROOT / s).is_file() for s in sources), sources
            copied |= {target + Path(s).name for s in sources}
    (entry,) = [json.loads(a) for name, a in instructions(dockerfile) if name == "ENTRYPOINT"]
    assert entry[0] in copied
    assert "/opt/sparkgap/conf/spark-defaults.conf" in copied
    assert "SPARK_CONF_DIR=/opt/sparkgap/conf" in dockerfile


def test_image_has_the_jar_and_the_gpu_script_where_the_defaults_say(dockerfile, defaults):
    assert f"sparkgap-server jar --output {properties(defaults)['spark.jars']} " in dockerfile
    scripts = set(re.findall(r"discoveryScript\s+(\S+)", defaults))
    assert scripts == {"/opt/sparkgap/gpus.sh"}
    assert re.search(r"COPY --chmod=0755 .*deploy/gpus.sh /opt/sparkgap/$", dockerfile, re.M)


def test_torch_comes_from_a_build_argument_into_the_server_alone(dockerfile):
    steps = stages(dockerfile)["server"]
    assert ("ARG", "TORCH=torch") in steps
    assert any(name == "RUN" and '"${TORCH}"' in a for name, a in steps)
    assert not any("TORCH" in a or "jre" in a for _, a in stages(dockerfile)["client"])
    assert any('whl)[client]"' in a for _, a in stages(dockerfile)["client"])
    assert any('whl)[server]"' in a for _, a in steps)


def test_apt_lists_are_fresh_and_leave_no_layer(dockerfile):
    (apt,) = [a for name, a in instructions(dockerfile) if name == "RUN" and "apt-get" in a]
    assert apt.index("apt-get update") < apt.index("openjdk-17-jre-headless") < apt.index("rm -rf /var/lib/apt/lists")


# ---- compose ----


def test_compose_has_a_cluster_of_one_image_and_a_thin_client(services):
    assert set(services) == {"master", "worker-1", "worker-2", "connect", "client"}
    images = {name: service["image"] for name, service in services.items()}
    assert images.pop("client") == "sparkgap-client:local"
    assert set(images.values()) == {"sparkgap:local"}
    assert {s["build"]["dockerfile"] for s in services.values()} == {"deploy/Dockerfile"}
    assert {name: s["build"]["target"] for name, s in services.items()} == {
        n: "client" if n == "client" else "server" for n in services
    }


def test_compose_depends_on_services_that_exist_and_agree_on_the_master(services):
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
    port = services["master"]["command"][services["master"]["command"].index("--port") + 1]
    url = f"spark://{services['master']['command'][2]}:{port}"
    assert services["master"]["command"][:3] == ["master", "--host", "master"]
    assert all(services[w]["command"][-1] == url for w in ("worker-1", "worker-2"))
    assert f"--master={url}" in services["connect"]["command"]
    assert confs(services["connect"]["command"])["spark.driver.host"] == "connect"


def test_compose_publishes_the_connect_port_on_loopback_and_nothing_else(services):
    port = confs(services["connect"]["command"])["spark.connect.grpc.binding.port"]
    assert {name: s["ports"] for name, s in services.items() if "ports" in s} == {
        "connect": [f"127.0.0.1:{port}:{port}"]
    }
    assert port in services["connect"]["healthcheck"]["test"][-1]
    assert services["client"]["environment"]["SPARK_REMOTE"] == f"sc://localhost:{port}"
    assert services["client"]["network_mode"] == "service:connect"


def test_compose_gives_the_token_to_server_and_client_only_and_from_a_file_git_ignores(services):
    assert {name for name, s in services.items() if s.get("env_file") == ["token.env"]} == {"connect", "client"}
    assert not any(TOKEN in s.get("environment", {}) for s in services.values())
    assert "token.env" in (DEPLOY / ".gitignore").read_text().split()
    assert "**/*.env" in (DEPLOY / "Dockerfile.dockerignore").read_text().split()


def test_compose_containers_cannot_gain_rights(services):
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_compose_workers_give_their_executors_the_cores_that_the_server_asks_for(services):
    settings = confs(services["connect"]["command"])
    given = [services[w]["command"][services[w]["command"].index("--cores") + 1] for w in ("worker-1", "worker-2")]
    assert given == [settings["spark.executor.cores"]] * 2
    assert sum(map(int, given)) == int(settings["spark.cores.max"])


# ---- kubernetes ----


def test_kubernetes_has_these_objects(objects):
    assert set(objects) == {
        ("ServiceAccount", "sparkgap-server"),
        ("ServiceAccount", "sparkgap-executor"),
        ("Role", "sparkgap-server"),
        ("RoleBinding", "sparkgap-server"),
        ("Secret", "sparkgap-token"),
        ("ConfigMap", "sparkgap-executor"),
        ("Deployment", "sparkgap-server"),
        ("Service", "sparkgap"),
        ("Service", "sparkgap-driver"),
        ("NetworkPolicy", "sparkgap-server"),
        ("NetworkPolicy", "sparkgap-executor"),
    }
    groups = {kind: o["apiVersion"] for (kind, _), o in objects.items()}
    assert groups == {
        **dict.fromkeys(("ServiceAccount", "Secret", "ConfigMap", "Service"), "v1"),
        **dict.fromkeys(("Role", "RoleBinding"), "rbac.authorization.k8s.io/v1"),
        "Deployment": "apps/v1",
        "NetworkPolicy": "networking.k8s.io/v1",
    }


def test_the_secret_is_a_template_and_the_server_reads_it(objects, server):
    assert objects["Secret", "sparkgap-token"].keys() == {"apiVersion", "kind", "metadata", "type"}
    (token,) = [e for e in server["env"] if e["name"] == TOKEN]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "sparkgap-token", "key": "token"}}
    assert not any("value" in e for e in server["env"])


def test_accounts_and_rights_belong_together(objects, server_pod, server, executor_pod):
    binding = objects["RoleBinding", "sparkgap-server"]
    assert ("Role", binding["roleRef"]["name"]) in objects
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": server_pod["spec"]["serviceAccountName"]}]
    assert ("ServiceAccount", server_pod["spec"]["serviceAccountName"]) in objects
    account = objects[
        "ServiceAccount", confs(server["args"])["spark.kubernetes.authenticate.executor.serviceAccountName"]
    ]
    assert account["automountServiceAccountToken"] is False
    assert executor_pod["spec"]["automountServiceAccountToken"] is False
    rules = objects["Role", "sparkgap-server"]["rules"]
    assert {r for rule in rules for r in rule["resources"]} == {"pods", "configmaps"}
    assert not any("*" in rule[part] for rule in rules for part in ("apiGroups", "resources", "verbs"))


def test_pods_run_without_rights_as_the_user_of_the_image(server_pod, executor_pod, dockerfile):
    (uid,) = {a for name, a in instructions(dockerfile) if name == "USER"}
    for spec in (server_pod["spec"], executor_pod["spec"]):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == int(uid)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_server_and_executors_run_the_image_that_compose_builds(server, services):
    assert server["image"] == confs(server["args"])["spark.kubernetes.container.image"] == services["connect"]["image"]


def test_the_server_finds_the_executors_template(server, server_pod, executor_pod):
    settings = confs(server["args"])
    (mount,) = server["volumeMounts"]
    (volume,) = server_pod["spec"]["volumes"]
    assert volume == {"name": mount["name"], "configMap": {"name": "sparkgap-executor"}}
    assert settings["spark.kubernetes.executor.podTemplateFile"] == f"{mount['mountPath']}/pod.yaml"
    assert (
        settings["spark.kubernetes.executor.podTemplateContainerName"] == executor_pod["spec"]["containers"][0]["name"]
    )
    assert {m["name"] for m in executor_pod["spec"]["containers"][0]["volumeMounts"]} == {
        v["name"] for v in executor_pod["spec"]["volumes"]
    }


def test_arguments_use_variables_that_the_container_has(server):
    used = set(re.findall(r"\$\((\w+)\)", " ".join(server["args"])))
    assert used == {"POD_NAME", "POD_NAMESPACE"}
    assert used <= {e["name"] for e in server["env"]}


def test_ports_are_the_same_in_settings_services_and_policies(objects, server):
    settings = confs(server["args"])
    connect, driver = (
        settings["spark.connect.grpc.binding.port"],
        [settings["spark.driver.port"], settings["spark.driver.blockManager.port"]],
    )
    named = {p["name"]: p["containerPort"] for p in server["ports"]}
    assert [str(p) for p in named.values()] == [connect, *driver]
    for name in ("sparkgap", "sparkgap-driver"):
        for port in objects["Service", name]["spec"]["ports"]:
            assert named[port["targetPort"]] == port["port"]
    assert [p["name"] for p in objects["Service", "sparkgap"]["spec"]["ports"]] == ["connect"]
    clients, executors = objects["NetworkPolicy", "sparkgap-server"]["spec"]["ingress"]
    assert [str(p["port"]) for p in clients["ports"]] == [connect]
    assert [str(p["port"]) for p in executors["ports"]] == driver
    assert {server[probe]["tcpSocket"]["port"] for probe in ("startupProbe", "readinessProbe")} == {"connect"}


def test_services_and_policies_select_the_pods_they_mean(objects, server_pod, executor_pod):
    labels, executors = server_pod["metadata"]["labels"], executor_pod["metadata"]["labels"]
    assert labels != executors
    assert objects["Deployment", "sparkgap-server"]["spec"]["selector"] == {"matchLabels": labels}
    for service in ("sparkgap", "sparkgap-driver"):
        assert objects["Service", service]["spec"]["selector"] == labels
    for policy, selected in (("sparkgap-server", labels), ("sparkgap-executor", executors)):
        assert objects["NetworkPolicy", policy]["spec"]["podSelector"] == {"matchLabels": selected}
    (rule,) = objects["NetworkPolicy", "sparkgap-executor"]["spec"]["ingress"]
    assert [s["podSelector"]["matchLabels"] for s in rule["from"]] == [executors, labels]
    assert objects["NetworkPolicy", "sparkgap-server"]["spec"]["ingress"][1]["from"] == [
        {"podSelector": {"matchLabels": executors}}
    ]


def test_executors_reach_the_driver_by_its_headless_service(objects, server):
    name = confs(server["args"])["spark.driver.host"].split(".")[0]
    service = objects["Service", name]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert objects["Service", "sparkgap"]["spec"]["type"] == "ClusterIP"


def test_one_server_at_a_time_with_room_beside_the_heap(objects, server):
    spec = objects["Deployment", "sparkgap-server"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    settings = confs(server["args"])
    assert int(server["resources"]["limits"]["memory"].removesuffix("Gi")) > int(
        settings["spark.driver.memory"].removesuffix("g")
    )
    assert int(settings["spark.executor.memoryOverhead"].removesuffix("g")) >= int(
        settings["spark.executor.memory"].removesuffix("g")
    )


# ---- the image's scripts, against stand-ins ----


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def entry(tmp_path):
    program(tmp_path / "bin/tini", r'''printf "%s\n" "$@"''')

    def run(*arguments, **environment):
        paths = {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "SPARK_HOME": "/spark",
            "SPARK_CONF_DIR": "/conf",
            "JAVA_HOME": "/java",
        }
        return subprocess.run(
            [DEPLOY / "entrypoint.sh", *arguments], env=paths | environment, capture_output=True, text=True
        )

    return run


@pytest.mark.parametrize("environment", [{}, {TOKEN: ""}, {TOKEN: "short"}], ids=["none", "empty", "short"])
def test_the_server_does_not_start_without_a_good_token(entry, environment):
    done = entry("connect", **environment)
    assert done.returncode != 0
    assert "token" in done.stderr
    assert done.stdout == ""


def test_the_server_starts_with_its_arguments_and_keeps_the_token_off_them(entry):
    done = entry("connect", "--conf=spark.a=b c", **{TOKEN: "x" * 32})
    name = "org.apache.spark.sql.connect.service.SparkConnectServer"
    assert done.stdout.splitlines() == [
        "-s",
        "--",
        "/spark/bin/spark-submit",
        "--class",
        name,
        "--conf=spark.a=b c",
        "spark-internal",
    ]


@pytest.mark.parametrize(("role", "name"), [("master", "master.Master"), ("worker", "worker.Worker")])
def test_master_and_worker_start_from_spark_class(entry, role, name):
    assert entry(role, "--x").stdout.splitlines() == [
        "-s",
        "--",
        "/spark/bin/spark-class",
        f"org.apache.spark.deploy.{name}",
        "--x",
    ]


def test_other_commands_run_as_they_are_and_none_is_an_error(entry):
    assert entry("echo", "a b").stdout.splitlines() == ["-s", "--", "echo", "a b"]
    assert entry().returncode == 2


EXECUTOR = {
    "SPARK_EXECUTOR_MEMORY": "2g",
    "SPARK_DRIVER_URL": "spark://driver",
    "SPARK_EXECUTOR_ID": "7",
    "SPARK_EXECUTOR_CORES": "2",
    "SPARK_APPLICATION_ID": "app",
    "SPARK_EXECUTOR_POD_IP": "10.0.0.1",
    "SPARK_RESOURCE_PROFILE_ID": "0",
    "SPARK_EXECUTOR_POD_NAME": "pod",
}


def test_executors_start_as_spark_on_kubernetes_describes_them(entry):
    done = entry(
        "executor", SPARK_JAVA_OPT_1="-Db=2 3", SPARK_JAVA_OPT_0="-Da=1", SPARK_CLASSPATH="/more/*", **EXECUTOR
    )
    assert done.stdout.splitlines() == [
        *("-s", "--", "/java/bin/java", "-Da=1", "-Db=2 3", "-Xms2g", "-Xmx2g", "-cp", "/conf:/more/*:/spark/jars/*"),
        "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend",
        *("--driver-url", "spark://driver", "--executor-id", "7"),
        *("--cores", "2", "--app-id", "app", "--hostname", "10.0.0.1", "--resourceProfileId", "0", "--podName", "pod"),
    ]


@pytest.mark.parametrize("missing", EXECUTOR)
def test_an_executor_without_a_description_says_what_is_missing(entry, missing):
    done = entry("executor", **{k: v for k, v in EXECUTOR.items() if k != missing})
    assert done.returncode != 0
    assert missing in done.stderr


def test_the_gpu_script_prints_what_spark_reads(tmp_path):
    program(tmp_path / "nvidia-smi", r'''[[ $* == "--query-gpu=index --format=csv,noheader" ]] && printf "0\n1\n"''')
    done = subprocess.run(
        [DEPLOY / "gpus.sh"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"name": "gpu", "addresses": ["0", "1"]}


def test_the_gpu_script_fails_where_the_driver_does(tmp_path):
    program(tmp_path / "nvidia-smi", "exit 9")
    assert (
        subprocess.run(
            [DEPLOY / "gpus.sh"], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True
        ).returncode
        != 0
    )


# ---- standalone.sh, against a pyspark whose programs only say what Spark would log ----

SPARK_CLASS = r"""
exec -a "$0" "$JAVA_HOME/bin/java" "$0" --add-modules=jdk.incubator.vector "$@"
"""
JAVA = r"""
# A part of the cluster: notes how it was called, logs what Spark would, and stays.
[[ $* != *incubator* ]] || { echo "unknown module"; exit 1; }
name=${SPARKGAP_STANDALONE##*:}
printf '%s\n' "$@" >"$NOTES/$name.argv"
env >"$NOTES/$name.env"
case $name in
  master) echo 'INFO Master: Starting Spark master at spark://127.0.0.1:4711' ;;
  worker-*)
    echo 'INFO Worker: Successfully registered with master spark://127.0.0.1:4711'
    setsid bash -c 'trap "" TERM; echo $$ >>"$NOTES/stubborn"; sleep 600 & wait; sleep 600' &
    ;;
  server)
    [[ -z ${FAIL:-} ]] || { echo 'the last words'; exit 1; }
    echo 'INFO Registered executor A'; echo 'INFO Registered executor B'
    echo 15002 >"$(sed -n 's/^spark.sparkgap.readyFile *//p' "$SPARK_CONF_DIR/spark-defaults.conf")"
    ;;
esac
trap 'exit 0' TERM
sleep 600 &
wait
"""
COMMANDS = """
import pathlib, sys
if sys.argv[1] == "java-home":
    print(pathlib.Path(__file__).parents[1] / "java")
else:
    assert sys.argv[1:3] == ["jar", "--output"]
    pathlib.Path(sys.argv[3]).write_bytes(b"jar")
"""


@pytest.fixture
def cluster(tmp_path):
    """A function that runs standalone.sh with a short stop deadline; what it leaves is ended with the test."""
    program(tmp_path / "lib/pyspark/bin/spark-class", SPARK_CLASS)
    program(tmp_path / "lib/pyspark/bin/spark-submit", SPARK_CLASS)
    program(tmp_path / "lib/java/bin/java", JAVA)
    (tmp_path / "lib/pyspark/jars").mkdir()
    (tmp_path / "lib/pyspark/__init__.py").touch()
    (tmp_path / "lib/sparkgap_server").mkdir()
    (tmp_path / "lib/sparkgap_server/__init__.py").touch()
    (tmp_path / "lib/sparkgap_server/__main__.py").write_text(COMMANDS)
    program(
        tmp_path / "python", f'PYTHONPATH={shlex.quote(str(tmp_path / "lib"))} exec {shlex.quote(sys.executable)} "$@"'
    )
    (tmp_path / "deploy").mkdir()
    script = tmp_path / "deploy/standalone.sh"
    text = (DEPLOY / "standalone.sh").read_text()
    assert text.count("readonly stop_seconds=20\n") == 1
    script.write_text(text.replace("readonly stop_seconds=20\n", "readonly stop_seconds=1\n"))
    (tmp_path / "deploy/spark-defaults.conf").write_text((DEPLOY / "spark-defaults.conf").read_text())
    (tmp_path / "notes").mkdir()
    folder = tmp_path / "gap"

    def run(command, *more, **environment):
        arguments = ["--dir", str(folder), "--python", str(tmp_path / "python"), "--deadline", "20", *more]
        environment = os.environ | {"NOTES": str(tmp_path / "notes"), TOKEN: "of another cluster"} | environment
        return subprocess.run(
            ["bash", script, command, *arguments], env=environment, capture_output=True, text=True, timeout=60
        )

    run.folder, run.notes = folder, tmp_path / "notes"
    yield run
    run("stop")


def living(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SPARKGAP_STANDALONE={folder}:".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_start_prints_one_line_that_works_as_a_url(cluster):
    done = cluster("start")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"sc://localhost:15002/;token=[\w-]{40,}\n", done.stdout)
    assert (cluster.folder / "url").read_text() == done.stdout
    assert stat.S_IMODE((cluster.folder / "url").stat().st_mode) == 0o600
    assert stat.S_IMODE(cluster.folder.stat().st_mode) == 0o700


def test_the_token_is_in_the_servers_environment_and_nowhere_else(cluster):
    token = cluster("start").stdout.strip().partition("token=")[2]
    assert token
    seen = {path.name for path in cluster.notes.iterdir() if token in path.read_text()}
    assert seen == {"server.env"}
    others = [path.read_text() for path in cluster.notes.glob("*.env") if path.name != "server.env"]
    assert len(others) == 3
    assert not any(TOKEN in text for text in others)
    assert [p for p in cluster.folder.rglob("*") if p.is_file() and token in p.read_text()] == [cluster.folder / "url"]


def test_every_part_gets_the_wrapped_java_the_python_and_loopback(cluster):
    assert cluster("start", "--cores", "3").returncode == 0
    for path in cluster.notes.glob("*.env"):
        lines = path.read_text().splitlines()
        assert f"JAVA_HOME={cluster.folder}/java" in lines
        assert f"PYSPARK_PYTHON={cluster.folder.parent}/python" in lines
        assert f"SPARK_LOCAL_IP=127.0.0.{2 if path.stem == 'worker-2' else 1}" in lines
    worker = (cluster.notes / "worker-2.argv").read_text().split()
    assert worker[worker.index("--cores") + 1] == "3"
    assert worker[worker.index("--host") + 1] == "127.0.0.2"
    assert worker[-1] == "spark://127.0.0.1:4711"
    settings = properties((cluster.folder / "conf/spark-defaults.conf").read_text())
    assert settings.items() >= EXTENSION.items()
    assert settings["spark.jars"] == f"{cluster.folder}/sparkgap.jar"
    assert (settings["spark.executor.cores"], settings["spark.cores.max"]) == ("3", "6")


def test_stop_ends_even_what_left_its_session_and_ignores_signals(cluster):
    assert cluster("start").returncode == 0
    stubborn = [int(line) for line in (cluster.notes / "stubborn").read_text().split()]
    assert set(stubborn) < set(living(cluster.folder))
    done = cluster("stop")
    assert done.returncode == 0
    assert "SIGKILL" in done.stderr
    assert living(cluster.folder) == []
    assert not cluster.folder.exists()


def test_status_tells_what_runs(cluster):
    assert cluster("status").returncode == 3
    cluster("start")
    done = cluster("status")
    assert done.returncode == 0
    assert re.findall(r"^(\S+) +runs, process \d+", done.stdout, re.M) == ["master", "server", "worker-1", "worker-2"]
    os.kill(int((cluster.folder / "pid/worker-1").read_text()), 9)
    done = cluster("status")
    assert done.returncode == 3
    assert re.findall(r"^(\S+) +does not run", done.stdout, re.M) == ["worker-1"]


def test_a_part_that_fails_ends_the_others_and_shows_its_log(cluster):
    done = cluster("start", FAIL="yes")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "server: ended before it accepted connections" in done.stderr
    assert "the last words" in done.stderr
    assert living(cluster.folder) == []
    assert not cluster.folder.exists()


def test_a_part_that_does_not_come_up_is_given_up_at_the_deadline(cluster):
    done = cluster("start", "--workers", "3", "--deadline", "2")
    assert done.returncode == 1
    assert "server: not within 2 seconds: 3 executors registered" in done.stderr
    assert living(cluster.folder) == []


def test_start_and_stop_leave_a_folder_and_files_that_are_not_theirs(cluster):
    cluster.folder.mkdir()
    assert cluster("start").returncode == 0
    (cluster.folder / "mine").touch()
    again = cluster("start")
    assert (again.returncode, again.stdout) == (1, "")
    assert "is not empty" in again.stderr
    assert cluster("status").returncode == 0
    assert cluster("stop").returncode == 0
    assert [p.name for p in cluster.folder.iterdir()] == ["mine"]


def test_stop_of_nothing_is_no_failure(cluster):
    done = cluster("stop")
    assert done.returncode == 0
    assert "nothing was started" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["restart"], ["start", "--dir"], ["start", "--port", "1"]], ids=" ".join)
def test_wrong_calls_get_the_usage(arguments):
    done = subprocess.run([DEPLOY / "standalone.sh", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("standalone.sh start|stop|status")


def test_numbers_are_checked_before_anything_starts(cluster):
    done = cluster("start", "--workers", "0")
    assert done.returncode == 1
    assert "--workers" in done.stderr
    assert not cluster.folder.exists()
