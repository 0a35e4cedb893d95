"""The page as a whole: it stands alone, escapes what it shows, and copes with any stage of a run."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
import re

import pytest

from tests.unit.report.fake_run import fake_run
from tests.unit.report.pages import Page
from tests.unit.trajectory_records import refined, trajectory
from trd_ray.errors import ConfigError, DataError
from trd_ray.evaluation import GradedSample, summarise
from trd_ray.metrics import MetricsWriter, read_metrics
from trd_ray.outcomes import RejectReason
from trd_ray.report import write_report
from trd_ray.report.blob import unpack
from trd_ray.report.charts import fit
from trd_ray.report.data import load_run
from trd_ray.report.findings import duration, findings, headlines
from trd_ray.report.run_panels import gate_panel, rewrite_panels, run_panels
from trd_ray.roles import Role
from trd_ray.run_folder import RunFolder
from trd_ray.trajectory_log import write_trajectories
from trd_ray.types import TrajectorySource


def page_of(folder: RunFolder) -> tuple[str, Page]:
    path = write_report(folder.path)
    assert path == folder.report
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunFolder:
    return fake_run(tmp_path_factory.mktemp("runs") / "whole", num_steps=12, per_step=16)


def test_the_page_shows_all_and_asks_nobody_for_anything(whole):
    html, page = page_of(whole)
    assert (
        "on refinements of every rollout, scored under the student&#39;s prompt, teacher: an external model"
        in html
    )
    assert page.panels == [
        "Evaluation", "Accuracy while training", "Loss", "Gradient norm", "Learning rate",
        "What refining changes", "Gates", "How much is rewritten", "Support", "Length", "Time of a step",
        "Throughput",
    ]  # fmt: skip
    assert page.kinds().total() == page.runs[0]["num"] == 12 * 16
    assert set(page.kinds()) >= {"wrong to right", "both right", "both wrong"}
    assert page.runs[0]["numByKind"] == dict(page.kinds())
    assert {"avg@8 on held_out", "pass@8 on held_out"} <= set(re.findall(r'"name">(.*?)<', html))
    assert all(address == "data:," or address.startswith("#") for address in page.addresses)
    assert not re.search(r"https?://|@import|url\(", html)
    assert len(list(whole.path.glob("report*"))) == 1


@pytest.mark.parametrize("roles", [["generator", "teacher", "learner"], ["generator", "learner"]])
def test_a_watched_run_shows_what_each_role_did(tmp_path, roles):
    folder = fake_run(tmp_path / "run", num_steps=4, roles=[Role(role) for role in roles], evals=False)
    html, page = page_of(folder)
    titles = {"generator": "Generators", "teacher": "Teachers", "learner": "Learner"}
    assert page.panels[-len(roles) :] == [titles[role] for role in roles]
    # Grouped and readable: idle is a tenth of each step, and nothing was down.
    assert html.count("&#34;idle&#34;,&#34;10.0%&#34;") == 4 * len(roles)
    assert '<i class="c-down">' not in html


EVIL = "</script><img src=x onerror=alert(1)><!--<script>\u2028 {{ 7*7 }} ]]>"


def test_whatever_a_model_or_a_name_says_stays_text(tmp_path):
    folder = fake_run(tmp_path / "a<b>", num_steps=2, per_step=2, evals=False)
    folder.config.write_text(folder.config.read_text().replace("testbed:student", "'<img src=x>'"))
    samples = [GradedSample(prompt_id=str(i), correct=i > 1, num_tokens=3, truncated=False) for i in range(4)]
    with MetricsWriter(folder) as writer:
        writer.on_eval(summarise(samples, learner_step=0, dataset=f'{EVIL}"'))
    said = refined(EVIL, EVIL + EVIL)
    problem = dataclasses.replace(said.prompt.problem, problem=EVIL, prompt_id=EVIL, reference=EVIL)
    said = dataclasses.replace(said, prompt=dataclasses.replace(said.prompt, problem=problem))
    write_trajectories(folder.trajectories, [said], learner_step=1)
    html, page = page_of(folder)
    assert "<img" not in html
    assert "a<b>" not in html
    assert len(page.executable) == 1, "a script that is not ours"
    # It is there, unchanged, as data.
    assert EVIL in page.texts("rollout_text") and EVIL + EVIL in page.texts("trajectory_text")
    values, _ = page.index()
    assert EVIL in values["problems"] and EVIL in values["prompt_ids"]
    (references,) = [unpack(text)[0] for name, text in page.packed.items() if name.endswith("references")]
    assert EVIL in references["references"]


def test_the_policy_allows_our_script_and_style_and_nothing_else(whole):
    html, page = page_of(whole)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)[1].replace("&#39;", "'")
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]

    def named(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert dict(part.strip().split(" ", 1) for part in policy.split(";")) == {
        "default-src": "'none'", "script-src": named(page.executable[0]), "style-src": named(style),
        "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    assert " style=" not in html, "the policy would ignore it"


def test_a_run_without_refinements_has_no_word_of_them(tmp_path):
    folder = fake_run(tmp_path / "run", num_steps=4, refines=False, evals=False)
    html, page = page_of(folder)
    assert "What refining changes" not in page.panels
    assert "Refined accuracy" not in html
    assert set(page.kinds()) == {"right", "wrong"}
    assert set(page.texts("trajectory_text")) == {None}, "the rollout is carried twice"
    assert "Forward KL, full vocabulary, on rollouts, scored under" in html


def test_a_run_in_its_middle_says_so(tmp_path):
    folder = fake_run(tmp_path / "run", num_steps=10, done_steps=1)
    with folder.metrics.open("a") as file:
        file.write('{"learner_step": 2, "lo')
    html, page = page_of(folder)
    assert "The run is at step 1 of 10" in html
    assert page.kinds().total() == 8


def test_a_run_that_has_only_begun(tmp_path):
    folder = fake_run(tmp_path / "run", num_steps=10, done_steps=0, evals=False)
    html, page = page_of(folder)
    assert "No step and no evaluation is complete yet" in html
    assert page.panels == []
    with_eval = fake_run(tmp_path / "other", num_steps=10, done_steps=0)
    assert page_of(with_eval)[1].panels == ["Evaluation"]


def test_a_folder_without_config_or_with_a_foreign_one(whole, tmp_path):
    folder = fake_run(tmp_path / "run", num_steps=2)
    folder.config.write_text("method: {trajectory: of another version}\nrun: {num_steps: 2}\n")
    assert load_run(folder).method is None
    page_of(folder)
    folder.config.write_text("- no\n- mapping\n")
    with pytest.raises(DataError, match=r"config.yaml"):
        write_report(folder.path)
    folder.config.unlink()
    html, _ = page_of(folder)
    assert 'id="configuration"' not in html
    with pytest.raises(ConfigError, match="holds no run"):
        write_report(tmp_path / "nowhere")


def test_enum_names_in_the_config_are_understood_too(whole, tmp_path):
    folder = fake_run(tmp_path / "run", num_steps=2)
    text = folder.config.read_text()
    folder.config.write_text(text.replace("trajectory: refined", "trajectory: REFINED"))
    assert load_run(folder).method == load_run(whole).method


def test_a_loss_that_is_not_finite_is_a_gap_and_a_warning(tmp_path):
    folder = fake_run(tmp_path / "run", num_steps=3, evals=False)
    steps = read_metrics(folder.metrics)
    folder.metrics.unlink()
    with MetricsWriter(folder) as writer:
        for step in steps:
            writer.on_step(dataclasses.replace(step, loss=math.nan if step.learner_step == 2 else step.loss))
    html, page = page_of(folder)
    assert "The loss is not finite in 1 steps, first in step 2" in html
    assert "nan" not in re.findall(r"<td>(.*?)</td>", html.lower())
    assert "NaN" not in html.replace(page.executable[0], "")


def test_findings_warn_of_a_teacher_that_does_not_help(tmp_path):
    folder = fake_run(tmp_path / "run", num_steps=20, evals=False)
    run = load_run(folder)
    worse = tuple(
        dataclasses.replace(
            step, rollout_accuracy=0.5, refined_accuracy=0.9 if step.learner_step < 10 else 0.25,
            flips_right_to_wrong=2, num_consumed=4, num_rejected=4, rejected_by_reason={"empty": 4},
        )
        for step in run.steps
    )  # fmt: skip
    found = findings(dataclasses.replace(run, steps=worse))
    texts = " ".join(f.text for f in found if f.level == "warn")
    assert "refining does not help" in texts
    assert "fell from 90.0% to 25.0%" in texts
    assert "broke 50.0% of the right rollouts (40)" in texts
    assert "50.0% of the trajectories were rejected, most often as empty (80 times)" in texts


@pytest.mark.parametrize("text", [b"\xff\xfe", b"run: {dir: 2024-02-30}", b"- list"], ids=repr)
def test_a_damaged_configuration_is_named(tmp_path, text):
    folder = fake_run(tmp_path / "run", num_steps=1, evals=False)
    folder.config.write_bytes(text)
    with pytest.raises(DataError, match=r"config\.yaml cannot be read"):
        load_run(folder)


def test_a_configuration_without_a_method_tells_none(tmp_path):
    folder = fake_run(tmp_path / "run", num_steps=1, evals=False)
    folder.config.write_text("method: abc")
    assert load_run(folder).method is None


def test_findings_tell_a_sure_change_from_an_unsure_one(tmp_path):
    run = load_run(fake_run(tmp_path / "run", num_steps=2))
    first, last = run.evals[0], run.evals[-1]
    for end, level, words in (
        (dataclasses.replace(last, avg_at_k=0.9, avg_ci95=(0.8, 1.0)), "good", "do not overlap"),
        (dataclasses.replace(last, avg_at_k=0.0, avg_ci95=(0.0, 0.01)), "warn", "fell by"),
        (dataclasses.replace(last, avg_at_k=0.3, avg_ci95=(0.0, 1.0)), "info", "this may be chance"),
        (dataclasses.replace(last, avg_at_k=first.avg_at_k), "info", "as at step 0"),
    ):
        finding = findings(dataclasses.replace(run, evals=(first, end)))[0]
        assert finding.level == level
        assert words in finding.text


@pytest.mark.parametrize(
    ("num_trajectories", "refined_after", "trend"),
    [(100, 0.5, "down"), (100, 0.73, ""), (2, 0.5, ""), (100, 0.75, "")],
)
def test_headlines_compare_first_and_last_tenth(tmp_path, num_trajectories, refined_after, trend):
    """Only a change beyond the 95% intervals over trajectories has a colour."""
    run = load_run(fake_run(tmp_path / "run", num_steps=20, per_step=num_trajectories, evals=False))
    steps = tuple(
        dataclasses.replace(
            step,
            rollout_accuracy=0.25 if step.learner_step <= 2 else 0.5,
            refined_accuracy=0.75 if step.learner_step <= 2 else refined_after,
        )
        for step in run.steps
    )
    shown = {h.name: h for h in headlines(dataclasses.replace(run, steps=steps))}
    assert (shown["Rollout accuracy"].before, shown["Rollout accuracy"].value) == ("25.0%", "50.0%")
    assert shown["Rollout accuracy"].trend == ("up" if num_trajectories == 100 else "")
    assert shown["Refined accuracy"].trend == trend
    assert shown["Steps"].value == "20 of 20"


def test_an_accuracy_of_refinements_is_as_sure_as_their_number_makes_it(tmp_path):
    run = load_run(fake_run(tmp_path / "run", num_steps=2, per_step=400, evals=False))
    for num_refined, trend in ((400, "up"), (8, "")):
        steps = tuple(
            dataclasses.replace(
                step, refined_accuracy=accuracy, num_refined_tokens=10 * num_refined, refined_length_mean=10.0
            )
            for step, accuracy in zip(run.steps, (0.5, 0.75), strict=True)
        )
        shown = {h.name: h for h in headlines(dataclasses.replace(run, steps=steps))}
        assert (shown["Refined accuracy"].value, shown["Refined accuracy"].trend) == ("75.0%", trend)


@pytest.mark.parametrize(
    ("seconds", "text"), [(45, "45 s"), (600, "10 min"), (12000, "3 h 20 min"), (3599, "1 h 0 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_panels_of_rewriting_show_what_there_is(tmp_path):
    steps = load_run(fake_run(tmp_path / "run", num_steps=3, evals=False)).steps

    def titles(**values):
        shown = rewrite_panels(tuple(dataclasses.replace(step, **values) for step in steps))
        return [(panel.title, panel.width, len(panel.legend)) for panel in fit(shown)]

    none = {"edit_distance_mean": None, "kept_share_mean": None, "support_mean": None}
    assert titles(**none) == []
    assert titles(**(none | {"support_mean": -0.1})) == [], "a rollout method has no rewrites"
    assert titles(**(none | {"edit_distance_mean": 0.5})) == [("How much is rewritten", "full", 0)]
    assert titles(edit_distance_mean=0.5, kept_share_mean=0.25, support_mean=-0.5) == [
        ("How much is rewritten", "half", 2),
        ("Support", "half", 0),
    ]


def test_no_row_of_charts_has_a_hole(whole, tmp_path):
    plain = fake_run(tmp_path / "plain", num_steps=3, refines=False, evals=False)
    watched = fake_run(tmp_path / "watched", num_steps=3, roles=[Role.GENERATOR, Role.LEARNER])
    for folder in (whole, plain, watched):
        room = 0
        for panel in run_panels(load_run(folder)):
            room = (room + {"full": 6, "half": 3, "third": 2}[panel.width]) % 6
        assert room == 0


def test_gates_show_what_was_rejected_and_why(tmp_path):
    steps = load_run(fake_run(tmp_path / "run", num_steps=4, evals=False)).steps
    step = dataclasses.replace(
        steps[0], num_consumed=5, num_rejected=3, rejected_by_reason={"empty": 1, "stale": 2},
        refinement_refused_by_reason={"low_support": 4},
    )  # fmt: skip
    panel = gate_panel([step])
    assert [name for _, name in panel.legend] == ["trained on", "rejected: empty", "rejected: stale"]
    assert "low_support 4" in panel.note
    assert "62.5%" in panel.svg and "25.0%" in panel.svg


def test_a_refused_refinement_is_carried_and_an_answer_without_rollout_stands_alone(tmp_path):
    folder = fake_run(tmp_path / "run", num_steps=1, evals=False)
    splice = refined("abXX", "c<d", source=TrajectorySource.ROLLOUT, num_kept=2)
    refused = dataclasses.replace(splice, gate_reason=RejectReason.LOW_SUPPORT)
    alone = dataclasses.replace(
        trajectory(correct=True, text="the teacher's own"), rollout=None, source=TrajectorySource.TEACHER,
        policy_version_min=None, policy_version_max=None,
    )  # fmt: skip
    write_trajectories(folder.trajectories, [refused, alone], learner_step=1)
    _, page = page_of(folder)
    values, arrays = page.index()
    assert [values["enums"]["gate_reason"][i] for i in arrays["gate_reason"]] == ["low_support", ""]
    assert arrays["num_kept"].tolist() == [2, 0]
    assert arrays["rollout_correct"].tolist()[1] == arrays["policy_version_min"].tolist()[1] == -1
    assert page.texts("refinement_text") == ["c<d", None]
    assert page.texts("trajectory_text")[1] == "the teacher's own"


def test_the_trace_is_named_as_seen_from_the_page(tmp_path):
    folder = fake_run(tmp_path / "my runs" / "run", num_steps=1, evals=False)
    assert "trace.json" not in page_of(folder)[0]
    folder.trace.write_text("[]")
    html, page = page_of(folder)
    assert "trace.json" in page.addresses
    assert "ui.perfetto.dev" in html
    out = write_report(folder.path, tmp_path / "elsewhere" / "page.html")
    assert out == tmp_path / "elsewhere" / "page.html"
    assert "../my%20runs/run/trace.json" in Page(out.read_text()).addresses
