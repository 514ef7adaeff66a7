"""What `kubectl apply` takes and a cluster cannot run: names that mean nothing, times that do not add up."""

import copy
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import kubernetes_validate
import pytest
import yaml
from fastapi import FastAPI
from rendered import (
    K8S,
    ROOT,
    Document,
    Template,
    build,
    config,
    kustomizations,
    mounted,
    of_kind,
    quantity,
    rendered,
    selects,
    templates,
    variables,
    violations,
)

import mno
from model_store.backends import BACKENDS
from model_store.reference import Selector
from service.access.security import check_exposure
from service.errors import InvalidSettings
from service.grpc.health import HEALTH
from service.http.routes import create_app
from service.processes.supervisor import END_SECONDS
from service.settings import Limits, Settings, read_settings
from service.telemetry.metrics import Metrics
from training.config import parse_run

KUBERNETES = "1.36"
# kinds that others define: Prometheus' operator, the Gateway API, KEDA, KServe
THEIRS = {"ServiceMonitor", "HTTPRoute", "GRPCRoute", "ScaledObject", "ServingRuntime", "InferenceService"}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PAGE = (ROOT / "docs" / "deployment.md").read_text("utf-8")

every = pytest.mark.parametrize("folder", kustomizations())


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """The application; nobody asks it anything but its routes."""
    nothing = cast(Any, None)
    return create_app(nothing, nothing, nothing, Limits())


def names_of(kind: str) -> set[str]:
    """Folders whose manifests have a kind: tests of that kind have something to look at."""
    return {folder for folder in kustomizations() if of_kind(rendered(folder), kind)}


def serving(folder: str) -> Iterator[tuple[Template, Document, Settings]]:
    """The containers that serve, with the settings that they read at their start."""
    for template in templates(rendered(folder)):
        for container in template.containers:
            if container["args"][0] == "serve":
                yield template, container, settings_of(folder, template, container)


def settings_of(folder: str, template: Template, container: Document) -> Settings:
    """The settings of a container; unknown names are refused here as they are there."""
    documents, path = rendered(folder), (container["args"] + [None])[1]
    environment = variables(documents, container)
    if path is None:
        return read_settings(None, environment)
    text = mounted(documents, template, container, path)
    assert text is not None, f"{template.name} reads {path}, which nothing puts there"
    with TemporaryDirectory() as place:
        copied = Path(place, "service.toml")
        copied.write_text(text, "utf-8")
        return read_settings(copied, environment)


# --- they are manifests


def test_there_are_the_overlays() -> None:
    expected = {"overlays/cpu", "overlays/gpu", "overlays/dev", "train", "kserve", "examples/production"}
    assert expected == set(kustomizations())
    assert names_of("HorizontalPodAutoscaler") == {"overlays/cpu", "overlays/gpu", "examples/production"}
    assert names_of("Job") == {"train"}
    assert names_of("CronJob") == {"examples/production"}


@every
def test_manifests_fit_the_schemas(folder: str) -> None:
    for each in rendered(folder):
        if each["kind"] not in THEIRS:
            kubernetes_validate.validate(dict(each), KUBERNETES, strict=True)


def test_a_field_that_does_not_exist_is_noticed() -> None:
    (bad,) = copy.deepcopy(of_kind(rendered("overlays/cpu"), "Deployment"))
    bad["spec"]["template"]["spec"]["terminationGraceSeconds"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, KUBERNETES, strict=True)


@pytest.mark.parametrize("store", ["store-pvc", "store-s3"])
@pytest.mark.parametrize("scale", ["scale-hpa", "scale-keda"])
def test_components_go_together(tmp_path: Path, store: str, scale: str) -> None:
    # kustomize takes no absolute paths
    place = Path(*[".."] * len(tmp_path.resolve().parts[1:])) / K8S.relative_to("/")
    parts = [scale, "store-verify", store, "monitoring", "gateway"]
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "mno",
        "resources": [str(place / "base")],
        "components": [str(place / "components" / part) for part in parts],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(text))
    documents = build(tmp_path)
    assert "replicas" not in of_kind(documents, "Deployment")[0]["spec"]
    stores = {
        variables(documents, container)["MNO_STORE"]
        for template in templates(documents)
        for container in template.containers
    }
    assert len(stores) == 1
    assert stores.pop().partition(":")[0] == {"store-pvc": "file", "store-s3": "s3"}[store]


# --- names mean something


@every
def test_selectors_find_pods(folder: str) -> None:
    documents = rendered(folder)
    labels = [template.labels for template in templates(documents)]
    for each in of_kind(documents, "Deployment"):
        template = each["spec"]["template"]
        assert selects(each["spec"]["selector"]["matchLabels"], template["metadata"]["labels"])
        for spread in template["spec"]["topologySpreadConstraints"]:
            assert selects(spread["labelSelector"]["matchLabels"], template["metadata"]["labels"])
    for each in of_kind(documents, "Service"):
        assert any(selects(each["spec"]["selector"], known) for known in labels), each["metadata"]["name"]
    for each in of_kind(documents, "PodDisruptionBudget"):
        assert any(selects(each["spec"]["selector"]["matchLabels"], known) for known in labels)
    for each in of_kind(documents, "NetworkPolicy"):
        wanted = each["spec"]["podSelector"].get("matchLabels", {})
        assert any(selects(wanted, known) for known in labels), each["metadata"]["name"]
    for each in of_kind(documents, "ServiceMonitor"):
        wanted = each["spec"]["selector"]["matchLabels"]
        assert any(selects(wanted, s["metadata"]["labels"]) for s in of_kind(documents, "Service"))


def test_only_pods_that_serve_are_behind_a_service() -> None:
    documents = rendered("examples/production")
    for each in of_kind(documents, "Service"):
        behind = [t.name for t in templates(documents) if selects(each["spec"]["selector"], t.labels)]
        assert behind == ["Deployment/mno"]


@every
def test_ports_are_those_of_the_containers(folder: str) -> None:
    documents = rendered(folder)
    for template, container, settings in serving(folder):
        ports = {each.get("name"): each["containerPort"] for each in container["ports"]}
        assert settings.http_port in ports.values()
        if "grpc" in ports:
            assert settings.grpc
            assert ports == {"http": settings.http_port, "grpc": settings.grpc_port}
        for each in of_kind(documents, "Service"):
            for port in each["spec"]["ports"]:
                assert port["port"] == template.port(container, port["targetPort"])


@every
def test_routes_and_monitors_name_services_and_ports(folder: str) -> None:
    documents = rendered(folder)
    services = {
        each["metadata"]["name"]: {port["name"]: port["port"] for port in each["spec"]["ports"]}
        for each in of_kind(documents, "Service")
    }
    for route in of_kind(documents, "HTTPRoute", "GRPCRoute"):
        name = {"HTTPRoute": "http", "GRPCRoute": "grpc"}[route["kind"]]
        for rule in route["spec"]["rules"]:
            for behind in rule["backendRefs"]:
                assert services[behind["name"]][name] == behind["port"]
    for monitor in of_kind(documents, "ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            # of two Services with that port each pod would be counted twice
            assert sum(endpoint["port"] in ports for ports in services.values()) == 1


@every
def test_probes_ask_for_paths_that_exist(folder: str, app: FastAPI) -> None:
    paths = {getattr(route, "path", "") for route in app.routes}
    for template, container, settings in serving(folder):
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container[kind]
            assert probe.get("timeoutSeconds", 1) <= probe["periodSeconds"]
            if "grpc" in probe:
                assert settings.grpc
                assert settings.tls.cert is None
                assert probe["grpc"]["port"] == settings.grpc_port
            else:
                assert probe["httpGet"]["path"] in paths
                assert template.port(container, probe["httpGet"]["port"]) == settings.http_port
        # until then it may be loading, and is not restarted for that
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= settings.load_seconds


def test_both_protocols_are_probed() -> None:
    ((_, container, _),) = serving("overlays/cpu")
    probes = {kind: set(container[f"{kind}Probe"]) for kind in ("startup", "liveness", "readiness")}
    assert "httpGet" in probes["startup"] & probes["readiness"]
    assert "grpc" in probes["liveness"]


def test_public_routes_exist(app: FastAPI) -> None:
    paths = {getattr(route, "path", "") for route in app.routes}
    (route,) = of_kind(rendered("examples/production"), "HTTPRoute")
    for match in (match for rule in route["spec"]["rules"] for match in rule["matches"]):
        wanted = match["path"]["value"]
        assert wanted in paths or any(path.startswith(f"{wanted}/") for path in paths), wanted
        assert not "/metrics".startswith(wanted if wanted != "/" else "//")
    (route,) = of_kind(rendered("examples/production"), "GRPCRoute")
    for match in (match for rule in route["spec"]["rules"] for match in rule["matches"]):
        assert match["method"]["service"] in {HEALTH, *declared_services()}


def declared_services() -> set[str]:
    """The gRPC services of ``proto/``, by their full names."""
    found = set()
    for path in (ROOT / "proto").rglob("*.proto"):
        text = path.read_text("utf-8")
        package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
        assert package
        found |= {f"{package[1]}.{name}" for name in re.findall(r"^service (\w+)", text, re.MULTILINE)}
    return found


@every
def test_what_is_mounted_is_there(folder: str) -> None:
    documents = rendered(folder)
    claims = {each["metadata"]["name"] for each in of_kind(documents, "PersistentVolumeClaim")}
    for template in templates(documents):
        volumes = {each["name"] for each in template.spec.get("volumes", ())}
        mounts = {m["name"] for c in template.containers for m in c.get("volumeMounts", ())}
        assert volumes == mounts
        for volume in template.spec.get("volumes", ()):
            if "configMap" in volume:
                assert config(documents, volume["configMap"]["name"])
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "secret" in volume:
                assert volume["secret"]["secretName"] in PAGE


@every
def test_secrets_are_explained(folder: str) -> None:
    named = set(re.findall(r"'?(?:secretName|secretRef)'?: (?:\{'name': )?'([\w-]+)'", str(rendered(folder))))
    assert {name for name in named if f"secret generic {name}" not in PAGE} == set()


@every
def test_accounts_exist_and_have_no_token(folder: str) -> None:
    accounts = {each["metadata"]["name"]: each for each in of_kind(rendered(folder), "ServiceAccount")}
    for template in templates(rendered(folder)):
        assert template.spec["automountServiceAccountToken"] is False
        name = template.spec.get("serviceAccountName")
        # KServe's pods have the account of their namespace
        assert name is None or accounts[name]["automountServiceAccountToken"] is False


@every
def test_everything_is_in_one_namespace(folder: str) -> None:
    found = {each["metadata"].get("namespace") for each in rendered(folder) if each["kind"] != "Namespace"}
    assert len(found - {None}) == 1
    assert None not in found
    for each in of_kind(rendered(folder), "Namespace"):
        assert {each["metadata"]["name"]} == found
        assert each["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


# --- settings


@every
def test_settings_are_known_and_let_the_service_start(folder: str) -> None:
    for _, _, settings in serving(folder):
        assert settings.host == "0.0.0.0"
        check_exposure(settings.security, settings.host, mutual_tls=False)


def test_a_setting_that_nobody_knows_is_noticed() -> None:
    ((template, container, _),) = serving("overlays/cpu")
    bad = {**container, "env": [{"name": "MNO_DEVICES", "value": "cuda"}]}
    with pytest.raises(InvalidSettings, match="MNO_DEVICE"):
        settings_of("overlays/cpu", template, bad)


@every
def test_tokens_are_where_the_settings_say(folder: str) -> None:
    for template, container, settings in serving(folder):
        volumes = {each["name"]: each for each in template.spec["volumes"]}
        secret = [
            mount["mountPath"] for mount in container["volumeMounts"] if "secret" in volumes[mount["name"]]
        ]
        tokens = settings.security.tokens
        assert secret == ([] if tokens is None else [str(tokens.parent)])


def test_only_the_developers_overlay_is_open() -> None:
    is_open = {folder for folder in kustomizations() for _, _, s in serving(folder) if s.security.open}
    # before KServe's pods there is its gateway
    assert is_open == {"overlays/dev", "kserve"}


@every
def test_services_of_a_namespace_give_no_variables(folder: str) -> None:
    # a Service named mno gives MNO_PORT, which is no setting: the service would not start
    assert all(each.spec["enableServiceLinks"] is False for each in templates(rendered(folder)))
    with pytest.raises(InvalidSettings, match="MNO_PORT"):
        read_settings(None, {"MNO_PORT": "tcp://10.0.0.1:8080"})


@every
def test_stores_can_be_opened(folder: str) -> None:
    for template in templates(rendered(folder)):
        for container in template.containers:
            url = variables(rendered(folder), container).get("MNO_STORE")
            if url is None:
                continue
            assert url.partition(":")[0] in BACKENDS
            if url.startswith("file:"):
                mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
                mount = mounts[url.removeprefix("file:")]
                # whoever publishes writes, nobody else
                assert mount.get("readOnly", False) is (template.owner["kind"] != "Job")


@every
def test_commands_exist(folder: str) -> None:
    for template in templates(rendered(folder)):
        for container in template.containers:
            assert "command" not in container, "tini has to be process 1"
            assert mno.COMMANDS[container["args"][0]][0] is not None


def test_models_are_named_as_the_store_names_them() -> None:
    ((_, _, settings),) = serving("kserve")
    assert [Selector.parse(name).name for name in settings.models] == ["darcy"]


# --- times and sizes add up


@every
def test_pods_have_the_time_to_drain(folder: str) -> None:
    for template, container, settings in serving(folder):
        ends = settings.drain_delay_seconds + settings.grace_seconds + 3 * END_SECONDS
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert template.spec["terminationGracePeriodSeconds"] > before + ends, template.name
        # to be taken out of the endpoints takes a readiness probe no time, but word has to get around
        assert before >= 3


@every
def test_limits_are_no_less_than_requests(folder: str) -> None:
    for template in templates(rendered(folder)):
        for container in template.containers:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(requests) <= set(limits)
            for name, request in requests.items():
                assert quantity(request) <= quantity(limits[name]), (template.name, name)
            assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")


@every
def test_memory_is_enough_for_what_the_settings_allow(folder: str) -> None:
    for _, container, settings in serving(folder):
        # what the processes take that do nothing is measured in docs/deployment.md
        idle = 0.7 * 2**30
        limit = quantity(container["resources"]["limits"]["memory"])
        assert limit >= idle + settings.arena_bytes * settings.fronts


def test_volumes_fit_into_the_storage_of_the_node() -> None:
    for folder in kustomizations():
        for template in templates(rendered(folder)):
            sizes = [each["emptyDir"]["sizeLimit"] for each in template.spec["volumes"] if "emptyDir" in each]
            allowed = [c["resources"]["limits"].get("ephemeral-storage") for c in template.containers]
            for limit in filter(None, allowed):
                assert sum(map(quantity, sizes)) < quantity(limit), template.name


@every
def test_budgets_leave_one_and_let_one_go(folder: str) -> None:
    documents = rendered(folder)
    for budget in of_kind(documents, "PodDisruptionBudget"):
        least = least_replicas(documents)
        gone = budget["spec"]["maxUnavailable"]
        assert 1 <= gone < least


def least_replicas(documents: Any) -> int:
    """Of the one Deployment."""
    (deployment,) = of_kind(documents, "Deployment")
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        # both would set the number
        assert "replicas" not in deployment["spec"]
        return int(scaler["spec"]["minReplicas"])
    return int(deployment["spec"]["replicas"])


def test_what_has_one_replica_has_no_budget() -> None:
    assert least_replicas(rendered("overlays/dev")) == 1
    assert not of_kind(rendered("overlays/dev"), "PodDisruptionBudget")


@every
def test_updates_keep_a_pod(folder: str) -> None:
    for each in of_kind(rendered(folder), "Deployment"):
        update = each["spec"]["strategy"]["rollingUpdate"]
        assert update["maxSurge"] + update["maxUnavailable"] == 1
        if least_replicas(rendered(folder)) == 1:
            assert update["maxUnavailable"] == 0


@every
def test_images_are_those_of_this_release(folder: str) -> None:
    for template in templates(rendered(folder)):
        for container in template.containers:
            name, _, tag = container["image"].rpartition(":")
            gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert (name, tag) == ("localhost/mno", f"{VERSION}-{'cuda' if gpu else 'cpu'}")


# --- nobody gets in, nothing gets out


@every
def test_pods_are_restricted(folder: str) -> None:
    assert {each.name: violations(each) for each in templates(rendered(folder)) if violations(each)} == {}
    for template in templates(rendered(folder)):
        for container in template.containers:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {**template.spec["securityContext"], **container["securityContext"]}["runAsUser"] == 10001
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("hostNetwork",), True),
        (("volumes", 0), {"name": "config", "hostPath": {"path": "/"}}),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        (("containers", 0, "securityContext", "capabilities", "drop"), ["NET_RAW"]),
        (("containers", 0, "securityContext", "runAsNonRoot"), False),
        (("containers", 0, "securityContext", "seccompProfile", "type"), "Unconfined"),
        (("containers", 0, "ports", 0, "hostPort"), 8080),
    ],
)
def test_what_is_not_restricted_is_noticed(place: tuple[str | int, ...], value: object) -> None:
    ((template, _, _),) = serving("overlays/cpu")
    spec = copy.deepcopy(template.spec)
    inner: Any = spec
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    assert len(violations(Template(template.owner, template.labels, spec))) == 1


@pytest.mark.parametrize("folder", ["overlays/cpu", "overlays/gpu", "overlays/dev", "examples/production"])
def test_nothing_is_let_in_by_default(folder: str) -> None:
    policies = of_kind(rendered(folder), "NetworkPolicy")
    denies = [each["spec"] for each in policies if not each["spec"]["podSelector"]]
    assert denies == [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]


@every
def test_policies_name_ports_that_pods_have(folder: str) -> None:
    documents = rendered(folder)
    for policy in (each["spec"] for each in of_kind(documents, "NetworkPolicy")):
        for rule in policy.get("ingress", ()):
            assert rule["from"]
            for port in rule["ports"]:
                for template in templates(documents):
                    if selects(policy["podSelector"].get("matchLabels", {}), template.labels):
                        assert template.port(template.containers[0], port["port"])
        for rule in policy.get("egress", ()):
            assert rule["to"]
            assert {port["port"] for port in rule["ports"]} <= {53, 443}


def test_whoever_needs_a_bucket_gets_out_to_it() -> None:
    documents = rendered("examples/production")
    egress = [each["spec"] for each in of_kind(documents, "NetworkPolicy") if "egress" in each["spec"]]
    for template in templates(documents):
        ways = {
            port["port"]
            for policy in egress
            if selects(policy["podSelector"]["matchLabels"], template.labels)
            for rule in policy["egress"]
            for port in rule["ports"]
        }
        assert variables(documents, template.containers[0])["MNO_STORE"].startswith("s3:")
        assert ways == {53, 443}


@every
def test_what_checkov_skips_has_a_reason(folder: str) -> None:
    for each in rendered(folder):
        notes = each["metadata"].get("annotations", {})
        for name, text in notes.items():
            if name.startswith("checkov.io/skip"):
                assert re.fullmatch(r"CKV\w*_\d+=.{20,}", text), text


# --- scaling


def known_series() -> dict[str, set[str]]:
    """Series that the service has, as Prometheus stores them -> their labels."""
    series: dict[str, set[str]] = {}
    for each in Metrics().descriptions():
        labels = {*each.labels, "process"}
        series[each.name] = labels
        if each.kind == "histogram":
            series |= {f"{each.name}_{part}": labels for part in ("count", "sum", "bucket")}
    return series


def check_query(query: str) -> None:
    """Every series of a query is ours, and every label that it sums by."""
    found = set(re.findall(r"\bmno_\w+(?=\{)", query))
    assert found
    labels = set.intersection(*(known_series()[name] for name in found))
    for group in re.findall(r"\bby \(([^)]*)\)", query):
        by = {label.strip() for label in group.split(",")} - {"<<.GroupBy>>", ""}
        assert by <= labels, query


@pytest.mark.parametrize("folder", sorted(names_of("HorizontalPodAutoscaler")))
def test_the_autoscaler_asks_for_what_the_adapter_makes(folder: str) -> None:
    values = yaml.safe_load((K8S / "components/scale-hpa/prometheus-adapter-values.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    check_query(rule["metricsQuery"])
    assert re.fullmatch(rule["name"]["matches"], rule["seriesQuery"].partition("{")[0])
    (scaler,) = of_kind(rendered(folder), "HorizontalPodAutoscaler")
    assert [each["pods"]["metric"]["name"] for each in scaler["spec"]["metrics"]] == [rule["name"]["as"]]
    assert scaler["spec"]["minReplicas"] < scaler["spec"]["maxReplicas"]


def test_both_autoscalers_want_the_same() -> None:
    (hpa,) = of_kind(rendered("overlays/cpu"), "HorizontalPodAutoscaler")
    keda = yaml.safe_load((K8S / "components/scale-keda/scaled-object.yaml").read_text())["spec"]
    (trigger,) = keda["triggers"]
    check_query(trigger["metadata"]["query"])
    (metric,) = hpa["spec"]["metrics"]
    assert quantity(metric["pods"]["target"]["averageValue"]) == float(trigger["metadata"]["threshold"])
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["spec"]["behavior"]
    assert keda["minReplicaCount"] == hpa["spec"]["minReplicas"] <= keda["fallback"]["replicas"]
    assert keda["maxReplicaCount"] == hpa["spec"]["maxReplicas"]
    assert keda["scaleTargetRef"]["name"] == hpa["spec"]["scaleTargetRef"]["name"]


def test_a_metric_that_nobody_has_is_noticed() -> None:
    with pytest.raises(KeyError):
        check_query("sum by (model) (rate(mno_queue_secs_sum{a='b'}[2m]))")
    with pytest.raises(AssertionError):
        check_query("sum by (modell) (rate(mno_queue_seconds_sum{a='b'}[2m]))")


# --- training


def test_the_training_resumes_and_publishes_where_services_read() -> None:
    documents = rendered("train")
    (template,) = templates(documents)
    (container,) = template.containers
    command, path, *options = container["args"]
    text = mounted(documents, template, container, path)
    assert text is not None
    run = parse_run(text)
    assert (command, options) == ("train", ["--resume"])
    assert run.run.device == "cuda"
    assert run.publish is not None
    # the component says where, so that another one is another store
    assert run.publish.store is None
    (store,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "store"]
    assert variables(documents, container)["MNO_STORE"] == f"file:{store}"
    work = container["workingDir"]
    assert {"name": "work", "mountPath": work} in container["volumeMounts"]
    # what it resumes from is on the volume
    assert not run.run.directory.is_absolute()
    assert not run.data.directory.is_absolute()


def test_a_training_that_cannot_be_done_is_not_tried_again() -> None:
    (job,) = of_kind(rendered("train"), "Job")
    first, *_ = job["spec"]["podFailurePolicy"]["rules"]
    assert first["action"] == "FailJob"
    assert first["onExitCodes"]["values"] == [mno.WRONG_USAGE]
    assert job["spec"]["backoffLimit"] > 0
    # kubelets start a container again by themselves otherwise, and no policy is asked
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_run_is_the_built_in_models() -> None:
    own = (K8S / "train" / "run.toml").read_text()
    builtin = (ROOT / "training" / "runs" / "darcy.toml").read_text()
    assert parse_run(own).training_recipe() == parse_run(builtin).training_recipe()
