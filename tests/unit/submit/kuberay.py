"""The fields of KubeRay's resources that the manifests may use: a JSON schema in which nothing else is known.

Names and types are those of ray.io/v1 in KubeRay 1.5.1 and in a snapshot of August 2026; a field that an
operator would not know is a mistake that it reports late or never.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def record(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {
        "type": "object", "properties": fields, "required": list(required), "additionalProperties": False,
    }  # fmt: skip


def each(items: Schema, *, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least}


TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"}
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}

CONTAINER = record(
    ("name", "image", "resources"),
    name=TEXT,
    image=TEXT,
    ports=each(record(("containerPort",), containerPort=COUNT, name={"type": "string", "maxLength": 15})),
    resources=record(("requests", "limits"), requests=QUANTITIES, limits=QUANTITIES),
    env=each(record(("name", "value"), name=TEXT, value=TEXT)),
    volumeMounts=each(record(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
)
VOLUME = record(
    ("name",),
    name=TEXT,
    persistentVolumeClaim=record(("claimName",), claimName=TEXT),
    emptyDir=record(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
)
POD = record(
    ("spec",),
    spec=record(
        ("containers",),
        securityContext=record(runAsUser=COUNT, fsGroup=COUNT),
        containers=each(CONTAINER, least=1),
        volumes=each(VOLUME),
    ),
)
CLUSTER_SPEC = record(
    ("rayVersion", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=TEXT,
    authOptions=record(mode={"enum": ["disabled", "token"]}),
    headGroupSpec=record(
        ("template", "rayStartParams"),
        serviceType={"enum": ["ClusterIP"]},
        rayStartParams=TEXTS,
        template=POD,
    ),
    workerGroupSpecs=each(
        record(
            ("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=TEXT, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, rayStartParams=TEXTS,
            template=POD,
        ),
        least=1,
    ),
)  # fmt: skip
JOB_SPEC = record(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    backoffLimit=COUNT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER_SPEC,
)


def resource(kind: str) -> Schema:
    """The schema of a whole manifest."""
    spec = {"RayCluster": CLUSTER_SPEC, "RayJob": JOB_SPEC}[kind]
    name: Schema = {"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"}
    return record(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"}, kind={"const": kind}, metadata=record(("name",), name=name),
        spec=spec,
    )  # fmt: skip
