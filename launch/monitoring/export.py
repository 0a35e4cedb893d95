"""`trd-ray monitoring`: what Prometheus and Grafana need to watch the runs of this machine."""

from __future__ import annotations

from pathlib import Path

import yaml

from launch.consoles import show
from launch.monitoring.board import board_json
from trd_ray.errors import ConfigError, describe

SCRAPE_S = 10
"""Ray's agents publish as often."""
DISCOVERY = "prom_metrics_service_discovery.json"
"""Ray's head writes the addresses of all agents into this file of its temporary folder."""


def export(output: Path, ray_temp_dir: Path) -> None:
    """Write all files into the folder `output`, which may be there. Raises `ConfigError` if it is a file."""
    if output.exists() and not output.is_dir():
        raise ConfigError(
            describe(
                "the output is a file", where="OUTPUT", got=output, expected="a folder",
                remedy="name another place",
            )
        )  # fmt: skip
    for name, text in files(ray_temp_dir).items():
        path = output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    show(
        f"prometheus --config.file={output / 'prometheus.yml'} --web.listen-address=127.0.0.1:9090\n"
        f"grafana: import {output / 'grafana' / 'dashboards' / 'trd-ray.json'}, or provision from "
        f"{output / 'grafana'}"
    )


def files(ray_temp_dir: Path) -> dict[str, str]:
    """Texts by path in the output folder."""
    return {
        "prometheus.yml": prometheus_config(ray_temp_dir),
        "grafana/dashboards/trd-ray.json": board_json(),
        "grafana/provisioning/dashboards/trd-ray.yml": _yaml(
            {"apiVersion": 1, "providers": [{
                "name": "trd-ray", "type": "file",
                # Grafana replaces it with its own environment.
                "options": {"path": "$TRD_RAY_GRAFANA_DIR/dashboards"},
            }]}
        ),
        "grafana/provisioning/datasources/trd-ray.yml": _yaml(
            {"apiVersion": 1, "datasources": [{
                "name": "trd-ray", "type": "prometheus", "access": "proxy", "url": "http://127.0.0.1:9090",
                "isDefault": True,
            }]}
        ),
    }  # fmt: skip


def prometheus_config(ray_temp_dir: Path) -> str:
    """Finds every agent of the cluster by itself, also those of nodes that join later."""
    return _yaml(
        {
            "global": {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s"},
            "scrape_configs": [
                {"job_name": "ray", "file_sd_configs": [{"files": [str(ray_temp_dir / DISCOVERY)]}]}
            ],
        }
    )


def _yaml(value: object) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False)
    return text
