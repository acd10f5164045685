"""Kubernetes' client for Python against the server that KUBECONFIG names: asserts that say what it must be able to do. Argument: a manifest."""

import sys
import threading
import time

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException

NAMESPACE = "python"


def named(name, **more):
    return client.V1ObjectMeta(name=name, **more)


def refused(status, reason, call, *arguments):
    try:
        call(*arguments)
    except ApiException as error:
        assert error.status == status, error
        assert f'"reason":"{reason}"' in error.body, error.body
        return
    raise AssertionError(f"{call.__name__} was not refused")


config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()

# made
core.create_namespace(client.V1Namespace(metadata=named(NAMESPACE)))
first = core.create_namespaced_config_map(
    NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="m-"), data={"a": "b"})
)
assert first.metadata.name.startswith("m-"), first
container = client.V1Container(name="web", image="web:1", ports=[client.V1ContainerPort(container_port=80)])
template = client.V1PodTemplateSpec(
    metadata=client.V1ObjectMeta(labels={"app": "web"}), spec=client.V1PodSpec(containers=[container])
)
selector = client.V1LabelSelector(match_labels={"app": "web"})
deployment = apps.create_namespaced_deployment(
    NAMESPACE,
    client.V1Deployment(
        metadata=named("web"), spec=client.V1DeploymentSpec(replicas=2, selector=selector, template=template)
    ),
)
assert deployment.spec.strategy.rolling_update.max_surge == "25%", deployment
assert deployment.metadata.generation == 1, deployment
assert len(utils.create_from_yaml(client.ApiClient(), sys.argv[1], namespace=NAMESPACE)) > 0

# patched: a strategic merge, the client's default for a dict; a JSON patch, for a list
patched = apps.patch_namespaced_deployment(
    "web", NAMESPACE, {"spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:2"}]}}}}
)
assert patched.spec.template.spec.containers[0].image == "web:2", patched
assert patched.spec.template.spec.containers[0].ports[0].container_port == 80, patched
scaled = apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 5}})
assert scaled.spec.replicas == 5, scaled
assert apps.read_namespaced_deployment_scale("web", NAMESPACE).status.selector == "app=web"

# watched, from where it was made
seen = []


def listen():
    events = watch.Watch().stream(
        core.list_namespaced_config_map,
        NAMESPACE,
        field_selector=f"metadata.name={first.metadata.name}",
        resource_version=first.metadata.resource_version,
        timeout_seconds=2,
    )
    for event in events:
        seen.append((event["type"], event["object"].data))


listener = threading.Thread(target=listen)
listener.start()
core.patch_namespaced_config_map(first.metadata.name, NAMESPACE, [{"op": "add", "path": "/data/c", "value": "d"}])
core.delete_namespaced_config_map(first.metadata.name, NAMESPACE)
listener.join()
both = {"a": "b", "c": "d"}
assert seen == [("MODIFIED", both), ("DELETED", both)], seen

# applied, by the dynamic client, which has it all from discovery
everything = dynamic.DynamicClient(client.ApiClient())
maps = everything.resources.get(api_version="v1", kind="ConfigMap")
wanted = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "applied", "namespace": NAMESPACE},
    "data": {"k": "v"},
}
applied = maps.server_side_apply(wanted, field_manager="python", namespace=NAMESPACE)
again = maps.server_side_apply(wanted, field_manager="python", namespace=NAMESPACE)
assert applied.metadata.managedFields[0].operation == "Apply", applied
assert applied.metadata.resourceVersion == again.metadata.resourceVersion, again
wanted["data"]["k"] = "w"
refused(409, "Conflict", lambda: maps.server_side_apply(wanted, field_manager="other", namespace=NAMESPACE))

# listed: in pages, by selectors
page = core.list_config_map_for_all_namespaces(limit=2)
rest = core.list_config_map_for_all_namespaces(limit=500, _continue=page.metadata._continue)
assert len(rest.items) == page.metadata.remaining_item_count, (page, rest)
selected = core.list_namespaced_config_map(
    NAMESPACE, label_selector="app notin (web),!tier", field_selector="metadata.name=applied"
)
assert [item.metadata.name for item in selected.items] == ["applied"], selected

# a pod, its status, its node
deadline = time.monotonic() + 10
while not core.list_namespaced_service_account(NAMESPACE).items:
    assert time.monotonic() < deadline, "no service account"
    time.sleep(0.05)
core.create_namespaced_pod(
    NAMESPACE,
    client.V1Pod(metadata=named("p"), spec=client.V1PodSpec(containers=[client.V1Container(name="a", image="b")])),
)
node = client.V1ObjectReference(api_version="v1", kind="Node", name="somewhere")
binding = client.V1Binding(metadata=named("p"), target=node)
core.create_namespaced_binding(NAMESPACE, binding, _preload_content=False)
core.patch_namespaced_pod_status("p", NAMESPACE, {"status": {"phase": "Running", "podIP": "10.0.0.1"}})
there = core.list_pod_for_all_namespaces(field_selector="spec.nodeName=somewhere,status.phase=Running").items
assert [pod.metadata.name for pod in there] == ["p"], there
token = core.create_namespaced_service_account_token(
    "default", NAMESPACE, client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[]))
)
review = client.AuthenticationV1Api().create_token_review(
    client.V1TokenReview(spec=client.V1TokenReviewSpec(token=token.status.token))
)
assert review.status.user.username == f"system:serviceaccount:{NAMESPACE}:default", review

# refused
refused(404, "NotFound", core.read_namespaced_pod, "nothing", NAMESPACE)
refused(409, "AlreadyExists", core.create_namespace, client.V1Namespace(metadata=named(NAMESPACE)))
wrong = client.V1ConfigMap(metadata=named("Not_A_Name"))
refused(422, "Invalid", core.create_namespaced_config_map, NAMESPACE, wrong)

# gone
core.delete_collection_namespaced_config_map(NAMESPACE, field_selector="metadata.name=applied")
refused(404, "NotFound", core.read_namespaced_config_map, "applied", NAMESPACE)
core.delete_namespace(NAMESPACE)
print("all is as it should be")
