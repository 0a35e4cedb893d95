"""The loader: order of sources, and an error for each way to be wrong that names key and place."""

from pathlib import Path

import pytest

from trd_ray.config import TrdConfig
from trd_ray.config_docs import base_yaml
from trd_ray.config_keys import known_keys
from trd_ray.config_loader import dump_config, load_config
from trd_ray.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    (tmp_path / "parent.yaml").write_text("run: {seed: 3, num_steps: 7}\nlearner:\n  zero_stage: 2\n")
    path = tmp_path / "child.yaml"
    path.write_text("extends: [parent.yaml]\nrun:\n  num_steps: 9\n")
    return path


def test_later_sources_win(experiment: Path):
    config = load_config(experiment, ["run.num_steps=11", "method.divergence=reverse_kl"])
    assert (config.run.seed, config.run.num_steps, config.learner.zero_stage) == (3, 11, 2)
    assert config.method.divergence.value == "reverse_kl"


def test_dump_reads_back_to_an_equal_tree(tmp_path: Path, experiment: Path):
    config = load_config(experiment, ['data.eval=""', "learner.optimizer.learning_rate=3e-4"])
    (tmp_path / "dump.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dump.yaml") == config


def test_base_yaml_is_made_from_the_code_and_says_the_defaults():
    path = CONFIGS / "base.yaml"
    assert path.read_text() == base_yaml(), "run: python -m trd_ray.config_docs > configs/base.yaml"
    assert load_config(path) == TrdConfig()


def test_every_key_is_described_in_base_yaml():
    text = base_yaml()
    for key in known_keys():
        assert f" {key.rsplit('.', 1)[-1]}:" in text


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("run.num_step=3", ["unknown option", "run.num_step", "nearest is run.num_steps"]),
        ("run.num_steps=many", ["wrong type", "run.num_steps", "'many'", "int"]),
        ("run.num_steps=2.5", ["wrong type", "run.num_steps", "2.5"]),
        ("run.num_steps=0", ["run.num_steps", "1 or more"]),
        ("run.num_steps=", ["without a value", "run.num_steps"]),
        ("learner.zero_stage=4", ["learner.zero_stage", "between 1 and 3"]),
        ("method=refined", ["section", "method."]),
        ("method.divergence=kl", ["method.divergence", "forward_kl, reverse_kl"]),
        ("pipeline.max_staleness=1", ["pipeline.stage_barrier", "false where max_staleness is above 0"]),
        ("nonsense", ["malformed override", "key.path=value"]),
        ("method.trajectory=rollout", ["method.teacher_context", "no refinement"]),
        ("method.teacher_context=privileged", ["method.teacher_context", "method.privileged=true"]),
        ("generator.sampling.max_tokens=512", ["generator.sampling.max_tokens", "max_model_len"]),
        ("learner.device=cuda", ["learner.resources.gpus", "1: one for each GPU"]),
        ("teacher.resources.gpus=1", ["teacher.resources.gpus", "0: one for each GPU"]),
        ("eval.sampling.top_p=3", ["where:    eval.sampling.top_p", "set eval.sampling.top_p"]),
        ("teacher.engine.threads=0", ["where:    teacher.engine.threads"]),
        ("weight_sync.backend=nccl", ["weight_sync.backend", "if both are on cpu"]),
        (
            "run.trackers=[comet]",
            ["run.trackers", "a list [..., ...] of tensorboard, wandb, mlflow, trackio"],
        ),
        ("run.trackers=wandb", ["run.trackers", "a list [..., ...] of tensorboard, wandb"]),
        ("tracking.project=a/b", ["tracking.project", "letters, digits"]),
    ],
)
def test_bad_override_is_named(experiment: Path, override: str, parts: list[str]):
    with pytest.raises(ConfigError) as caught:
        load_config(experiment, [override])
    for part in parts:
        assert part in str(caught.value)


def test_unknown_key_in_a_file_is_named_with_file_and_line(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_text("run:\n  seed: 1\n  stepz: 4\n")
    with pytest.raises(ConfigError, match=r"run\.stepz \(.*bad\.yaml:3:3\)"):
        load_config(path)


def test_missing_and_broken_files(tmp_path: Path):
    with pytest.raises(ConfigError, match="not found"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("run: [1\n")
    with pytest.raises(ConfigError, match="broken YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must hold keys"):
        load_config(tmp_path / "list.yaml")


def test_circle_of_parents_is_refused(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(tmp_path / "a.yaml")


def test_python_objects_in_yaml_are_refused(tmp_path: Path):
    path = tmp_path / "evil.yaml"
    path.write_text("run: {dir: !!python/object/apply:os.getcwd []}\n")
    with pytest.raises(ConfigError, match=r"run\.dir"):
        load_config(path)
