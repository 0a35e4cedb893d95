"""What options mean: true to the dataclasses, and what configurations look like to people."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trd_ray.config import TrdConfig
from trd_ray.config_keys import known_keys
from trd_ray.config_loader import dump_config, load_config, load_with_origins
from trd_ray.config_reference import option_docs, reference_markdown, section_meaning
from trd_ray.config_views import differing_lines, docs_lines, yaml_with_origins
from trd_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
TRD_OPD = ROOT / "configs/experiment/trd_opd.yaml"


def test_the_page_is_current():
    path = ROOT / "docs/configuration.md"
    assert path.read_text() == reference_markdown(), (
        "run: python -m trd_ray.config_reference > docs/configuration.md"
    )


def test_every_option_is_in_it_once():
    docs = option_docs()
    assert tuple(doc.key for doc in docs) == known_keys()
    page = reference_markdown()
    assert all(page.count(f"| `{doc.key}` |") == 1 for doc in docs)


@pytest.mark.parametrize(
    ("key", "kind", "bounds", "default"),
    [
        ("run.num_steps", "int", "1 or more", "100"),
        ("run.seed", "int", "between 0 and 2147483647", "0"),
        ("method.beta", "float", "between 0.0 and 1.0", "0.5"),
        ("timeouts.sync_s", "float", "more than 0", "300.0"),
        ("eval.sampling.top_p", "float", "between 1e-06 and 1.0", "1.0"),
        ("teacher.sampling.temperature", "float", "0.0 or more", "0.0"),
        ("pipeline.log_targets", "true or false", "", "true"),
        ("method.support", "one of full, top_k, sampled", "", "full"),
        ("data.eval", "str", "", "testbed:held_out"),
    ],
)
def test_type_range_and_default(key: str, kind: str, bounds: str, default: str):
    (doc,) = option_docs(key)
    assert (doc.kind, doc.bounds, doc.default) == (kind, bounds, default)


def test_a_section_holds_its_options_and_those_of_its_own_sections():
    keys = [doc.key for doc in option_docs("learner.lora")]
    assert keys == ["learner.lora.rank", "learner.lora.alpha", "learner.lora.dropout", "learner.lora.target"]
    assert {doc.key for doc in option_docs("learner")} > set(keys)
    assert section_meaning("learner.lora") == "Low-rank adapters in place of training all weights."
    assert section_meaning("generator.resources") == "What each asks for."


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"nearest is learner\.optimizer\.learning_rate"):
        option_docs("learning_rate")
    with pytest.raises(ConfigError, match=r"nearest is learner\.lora\n"):
        option_docs("learner.lor")


def test_lines_for_the_terminal():
    lines = list(docs_lines("run.num_steps"))
    assert lines == ["run.num_steps  (int, 1 or more, default 100)", "    Optimizer steps. 1 or more."]


def test_origins_are_comments_and_the_yaml_reads_back(tmp_path: Path):
    loaded = load_with_origins(TRD_OPD, ["run.seed=5", 'data.eval=""', 'run.dir="a\\nb"'])
    text = yaml_with_origins(loaded)
    assert "  seed: 5  # command line\n" in text
    assert "  keep_checkpoints: 2  # default\n" in text
    assert f"  num_steps: 60  # {ROOT / 'configs/experiment/testbed.yaml'}:3:18\n" in text
    assert yaml.safe_load(text) == yaml.safe_load(dump_config(loaded.config))
    (tmp_path / "again.yaml").write_text(text)
    assert load_config(tmp_path / "again.yaml") == loaded.config


def test_differences():
    config = load_config(TRD_OPD, ["method.divergence=reverse_kl", "pipeline.log_targets=false"])
    lines = list(differing_lines(load_config(TRD_OPD), config))
    assert lines == [
        "method.divergence: forward_kl -> reverse_kl",
        "pipeline.log_targets: true -> false",
    ]
    assert list(differing_lines(TrdConfig(), TrdConfig())) == ["no differences"]
