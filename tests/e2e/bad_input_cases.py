# ruff: noqa: E501  (a row is a line)
"""Wrong inputs of the command line: what is typed, and what the answer must speak of. Add a row for each more.

In arguments and files `{tmp}` is a folder of the test's own and `{base}` is configs/experiment/trd_opd.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ROW = '{"problem": "1+1", "answer": "2"}\n'
DATA = ("data.task=math", 'data.eval=""')


@dataclass(frozen=True)
class Case:
    """One way to be wrong."""

    name: str
    arguments: tuple[str, ...]
    parts: tuple[str, ...]
    """Each must be in the message."""
    files: dict[str, str | bytes] = field(default_factory=dict)
    """Written into the folder first."""


def _train(name: str, arguments: tuple[str, ...], *parts: str, **more: dict[str, str | bytes]) -> Case:
    return Case(name, ("train", "{base}", "run.dir={tmp}/run", *arguments), parts, **more)


def _yaml(name: str, text: str | bytes, *parts: str) -> Case:
    return Case(name, ("train", "{tmp}/c.yaml"), ("c.yaml", *parts), {"c.yaml": text})


USAGE = (
    Case("unknown command", ("trian",), ("No such command", "Did you mean 'train'")),
    Case("unknown group command", ("config", "shwo"), ("No such command", "Did you mean 'show'")),
    Case("unknown flag", ("train", "{base}", "--resum"), ("No such option", "--resume")),
    Case("no configuration", ("train",), ("CONFIG", "name a file of configs/experiment")),
    Case("no argument of eval", ("eval",), ("Missing argument", "eval --help")),
    Case("no argument of report", ("report",), ("Missing argument", "report --help")),
    Case("flag without its value", ("train", "--replay"), ("--replay", "requires an argument")),
    Case("seed that is no number", ("testbed", "build", "{tmp}/m", "--seed", "x"), ("--seed", "integer")),
    Case("deep without dry run", ("train", "{base}", "--deep"), ("--deep", "leave it out")),
    Case("local in one process", ("train", "{base}", "--local", "--no-ray"), ("--local", "choose one")),
    Case("local replay", ("train", "--replay", "{tmp}", "--local"), ("--local", "--replay")),
    Case("replay resumed", ("train", "--replay", "{tmp}", "--resume"), ("--replay", "starts anew")),
    Case("replay of a configuration", ("train", "{base}", "--replay", "{tmp}"), ("--replay", "key.path=value")),
)  # fmt: skip

FILES = (
    Case("file not there", ("train", "{tmp}/none.yaml"), ("none.yaml", "No such file", "check the path")),
    Case("file misspelt", ("train", "configs/experiment/trd_odp.yaml"), ("nearest is configs/experiment/trd_opd")),
    Case("file is a folder", ("train", "{tmp}"), ("unreadable file", "Is a directory")),
    Case("name too long", ("train", "x" * 5000), ("unreadable file", "too long")),
    _yaml("not text", b"\xff\xfe\x00run", "broken YAML"),
    _yaml("tab", "run:\n\tseed: 1\n", "broken YAML", "c.yaml:2:1"),
    _yaml("open bracket", "run: {seed: 1\n", "broken YAML"),
    _yaml("list of keys", "- run\n", "must hold keys"),
    _yaml("key twice", "run: {seed: 1, seed: 2}\n", "same key twice"),
    _yaml("unknown key", "run:\n  stepz: 3\n", "c.yaml:2:3", "stepz: 3", "^^^^^"),
    _yaml("section with a value", "method: refined\n", "a section has no value", "method."),
    _yaml("option with keys", "run: {seed: {a: 1}}\n", "no keys below it"),
    _yaml("no value", "run: {seed: }\n", "option without a value"),
    _yaml("list for a number", "run: {seed: [1]}\n", "wrong type", "int"),
    _yaml("out of range", "run: {num_steps: 0}\n", "c.yaml:1:18", "1 or more"),
    _yaml("not a number", "learner: {optimizer: {learning_rate: .nan}}\n", "learning_rate", "more than 0"),
    _yaml("infinite", "learner: {optimizer: {learning_rate: .inf}}\n", "learning_rate", "finite"),
    _yaml("alias to itself", "run: &a {run: *a}\n", "unknown option"),
    _yaml("python object", "run: {dir: !!python/object/apply:os.getcwd []}\n", "broken YAML", "run.dir"),
    _yaml("one option in two spellings", "run.seed: 1\nrun: {seed: 2}\n", "same option twice", "c.yaml:2:7", "beside run.seed"),
    _yaml("parent not there", "extends: [p.yaml]\n", "p.yaml", "c.yaml:1:11"),
    _yaml("parent of itself", "extends: c.yaml\n", "circle"),
    Case("wrong in a parent", ("train", "{tmp}/c.yaml"), ("p.yaml:2:15, extended by", "c.yaml:1", "zero_stage: 9"),
         {"c.yaml": "extends: p.yaml\n", "p.yaml": "learner:\n  zero_stage: 9\n"}),
    Case("eval of no file", ("eval", "{tmp}/none.yaml"), ("none.yaml", "check the path")),
    Case("doctor of no file", ("doctor", "{tmp}/none.yaml"), ("none.yaml", "check the path")),
    Case("show of no file", ("config", "show", "{tmp}/none.yaml"), ("none.yaml", "check the path")),
    Case("diff with no file", ("config", "diff", "{base}", "{tmp}/none.yaml"), ("none.yaml", "check the path")),
    Case("docs of no option", ("config", "docs", "learner.lor"), ("nearest is learner.lora",)),
)  # fmt: skip

OVERRIDES = (
    _train("misspelt option", ("learner.optimiser.learning_rate=1",), "nearest is learner.optimizer.learning_rate"),
    _train("override of the wrong type", ("run.num_steps=several",), "run.num_steps=several", "'several'", "int"),
    _train("override without =", ("run.num_steps",), "malformed override", "config docs run.num_steps"),
    _train("override without a key", ("=3",), "malformed override"),
    _train("override that is no YAML", ("run.dir=[a, b",), "broken YAML", "run.dir=[a, b"),
    _train("value that refers to another", ("run.dir=runs/${run.seed}",), "run.dir", "without `${`"),
    _train("date that is none", ("run.dir=2024-02-30",), "unreadable value", "2024-02-30", "quotes"),
    _train("unknown choice", ("method.divergence=kl",), "one of forward_kl, reverse_kl"),
    _train("contradiction", ("pipeline.max_staleness=1",), "pipeline.stage_barrier", "beside pipeline.max_staleness"),
    _train("contradiction of the method", ("method.trajectory=rollout",), "method.teacher_context"),
    _train("top k beyond the vocabulary", ("method.support=top_k", "method.top_k=9999999"), "method.top_k"),
    _train("staleness in one process", ("pipeline.max_staleness=1", "pipeline.stage_barrier=false", "--no-ray"),
           "pipeline.max_staleness", "leave out --no-ray"),
    _train("GPU that the actor does not ask for", ("learner.device=cuda",), "learner.resources.gpus=1"),
    Case("eval without data", ("eval", "{base}", 'data.eval=""'), ("nothing to evaluate", "data.eval")),
    Case("doctor with an unknown key", ("doctor", "{base}", "run.sed=1"), ("nearest is run.seed",)),
    Case("show with a wrong value", ("config", "show", "{base}", "run.seed=x"), ("run.seed", "'x'")),
)  # fmt: skip

DATA_AND_MODELS = (
    _train("unknown task", ("data.task=maths",), "unknown task", "math"),
    _train("data file not there", (*DATA, "data.train={tmp}/none.jsonl"), "none.jsonl"),
    _train("data folder", (*DATA, "data.train={tmp}"), "data.train"),
    _train("data of an unknown kind", (*DATA, "data.train={tmp}/d.csv"), "d.csv", files={"d.csv": "a,b\n"}),
    _train("empty data", (*DATA, "data.train={tmp}/d.jsonl"), "d.jsonl", files={"d.jsonl": ""}),
    _train("broken row", (*DATA, "data.train={tmp}/d.jsonl"), "d.jsonl", "2", files={"d.jsonl": ROW + "{"}),
    _train("row that is a list", (*DATA, "data.train={tmp}/d.jsonl"), "d.jsonl", files={"d.jsonl": "[1]\n"}),
    _train("row without a column", (*DATA, "data.train={tmp}/d.jsonl"), "problem", files={"d.jsonl": '{"answer": "2"}\n'}),
    _train("column that is not there", (*DATA, "data.train={tmp}/d.jsonl", "data.columns.problem=question"), "question",
           files={"d.jsonl": ROW}),
    _train("no reference solution", (*DATA, "data.train={tmp}/d.jsonl", "method.privileged=true"), "solution",
           files={"d.jsonl": ROW}),
    _train("torn Parquet", (*DATA, "data.train={tmp}/d.parquet"), "d.parquet", files={"d.parquet": b"PAR1xx"}),
    _train("torn gzip", (*DATA, "data.train={tmp}/d.jsonl.gz"), "d.jsonl.gz", files={"d.jsonl.gz": b"\x1f\x8bxx"}),
    _train("unknown split", ("data.train=testbed:test",), "testbed:train"),
    _train("unknown sample", (*DATA, "data.train=sample:gsm9k"), "sample:"),
    _train("unknown protocol", (*DATA, "data.train=foo://a/b.jsonl"), "foo"),
    _train("home of nobody", (*DATA, "data.train=~nobody_here/b.jsonl"), "nobody_here"),
    _train("testbed with another task", ("data.task=math",), "data.task=arithmetic"),
    _train("model not there", ("student.model={tmp}/none",), "none", "No model folder"),
    _train("model is a file", ("student.model={tmp}/m",), "a file", files={"m": ""}),
    _train("model of nobody", ("teacher.model=~nobody_here/m",), "nobody_here"),
    _train("unknown testbed model", ("student.model=testbed:pupil",), "testbed:student or testbed:teacher"),
    _train("model without files", ("student.model={tmp}/m",), "No config.json", files={"m/README": ""}),
    _train("broken config.json", ("student.model={tmp}/m",), "Unreadable config.json", files={"m/config.json": "{"}),
    _train("no weights", ("student.model={tmp}/m",), "No weights", files={"m/config.json": "{}"}),
    _train("broken index", ("student.model={tmp}/m",), "Damaged weights", "weight_map",
           files={"m/config.json": "{}", "m/model.safetensors.index.json": "{}"}),
    _train("broken weights", ("student.model={tmp}/m", "--dry-run"), "Damaged weights",
           files={"m/config.json": '{"hidden_size": 4, "num_attention_heads": 2}', "m/model.safetensors": b"12345678901234"}),
    _train("splice without steps", (*DATA, "data.train={tmp}/d.jsonl", "method.trajectory=spliced"), "method.splice.locator",
           files={"d.jsonl": ROW}),
)  # fmt: skip

PLACES = (
    _train("run folder is a file", ("run.dir={tmp}/f",), "run.dir", "a file", files={"f": ""}),
    _train("run folder in a file", ("run.dir={tmp}/f/run",), "f/run", files={"f": ""}),
    _train("run folder holds a run", (), "already holds a run", "--resume", files={"run/metrics.jsonl": "{}\n"}),
    _train("run folder without a name", ('run.dir=" "',), "run.dir", "name a folder"),
    _train("run folder of nobody", ("run.dir=~nobody_here/run",), "nobody_here"),
    _train("resume of nothing", ("--resume",), "run"),
    _train("more actors than cores", ("generator.num_actors=4000",), "more cores", "lower num_actors"),
    _train("more memory than there is", ("teacher.resources.memory_gib=1e6",), "memory", "resources"),
    _train("context longer than the model's", ("generator.engine.max_model_len=100000",), "generator.engine.max_model_len"),
    _train("port out of range", ("ray.dashboard_port=70000",), "ray.dashboard_port", "65535"),
    _train("address that is none", ("ray.address=somewhere",), "ray.address", "host:port"),
    _train("address without a port", ("ray.address=10.0.0.1",), "ray.address", "host:port"),
    _train("address with a wrong port", ("ray.address=10.0.0.1:99999",), "ray.address", "host:port"),
    _train("address where nobody listens", ("ray.address=127.0.0.1:9",), "ray.address", "127.0.0.1:9"),
    Case("report of no folder", ("report", "{tmp}/none"), ("none",)),
    Case("report of a folder without a run", ("report", "{tmp}"), ("run",)),
    Case("report of nobody", ("report", "~nobody_here/x"), ("nobody_here",)),
    Case("replay of no run", ("train", "--replay", "{tmp}/none", "run.dir={tmp}/new"), ("no run to replay", "none")),
    Case("check of no models", ("testbed", "check", "{tmp}/none"), ("none",)),
)  # fmt: skip


def _sweep(name: str, text: str, *parts: str) -> Case:
    return Case(name, ("sweep", "{tmp}/s.yaml", "--dry-run"), ("s.yaml", *parts), {"s.yaml": text})


_BASE = "base: {base}\ndir: {tmp}/out\n"
SWEEPS = (
    Case("sweep of no file", ("sweep", "{tmp}/none.yaml"), ("none.yaml",)),
    _sweep("axis that is no option", f"{_BASE}axes: {{learner.optimizer.learning_rat: [1e-3]}}\n", "nearest is learner.optimizer.learning_rate"),
    _sweep("axis with a wrong value", f"{_BASE}axes: {{run.num_steps: [2, many]}}\n", "run.num_steps"),
    _sweep("method that is not there", f"{_BASE}axes: {{method: [trd_opt]}}\n", "trd_opt"),
    _sweep("seed twice", f"{_BASE}seeds: [0, 0]\n", "seeds"),
    _sweep("zip of different lengths", f"{_BASE}axes: {{zip: [{{run.seed: [1, 2], run.num_steps: [3]}}]}}\n", "zip"),
    _sweep("axis twice", f"{_BASE}axes:\n  run.num_steps: [1]\n  run.num_steps: [2]\n", "same key twice", "s.yaml:5:3"),
    _sweep("option that the sweep sets", f"{_BASE}set: {{run: {{dir: elsewhere}}}}\nseeds: [1]\n", "run.dir"),
    _sweep("option of no sweep", f"{_BASE}axis: {{run.seed: [1]}}\n", "axes"),
    Case("leaderboard of no sweep", ("leaderboard", "{tmp}/none"), ("none",)),
)  # fmt: skip

_AT = ("--address", "http://127.0.0.1:9")
SUBMITS = (
    Case("submit without an address", ("submit", "{base}", "run.dir=/r"), ("--address",)),
    Case("submit to no address", ("submit", "{base}", "run.dir=/r", "--address", "somewhere"), ("somewhere", "http://")),
    Case("submit to a port out of range", ("submit", "{base}", "run.dir=/r", "--address", "http://h:99999"), ("99999",)),
    Case("submit of no file", ("submit", "{tmp}/none.yaml", *_AT), ("none.yaml",)),
    Case("submit with an unknown option", ("submit", "{base}", *_AT, "run.dir=/r", "run.num_step=3"), ("nearest is run.num_steps",)),
    Case("submit with a folder that is lost", ("submit", "{base}", *_AT, "run.dir=runs/here"), ("run.dir", "absolute")),
    Case("submit of a folder that is not there", ("submit", "{base}", *_AT, "run.dir=/r", "--working-dir", "{tmp}/none"), ("none",)),
    Case("submit with a variable without a value", ("submit", "{base}", *_AT, "run.dir=/r", "--env", "NAME"), ("NAME", "NAME=VALUE")),
    Case("stop without a job", ("submit", "stop", *_AT), ("job_id",)),
)  # fmt: skip


CASES = USAGE + FILES + OVERRIDES + DATA_AND_MODELS + PLACES + SWEEPS + SUBMITS
