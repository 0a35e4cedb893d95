"""The trace as a viewer reads it: valid, without overlaps, and in agreement with the metrics."""

from __future__ import annotations

import itertools
import json
import logging
import random
from collections import defaultdict
from pathlib import Path

import pytest

from tests.unit.hand_clock import HandClock
from trd_ray.activity import RoleActivity
from trd_ray.activity_records import WaitReason
from trd_ray.roles import Role
from trd_ray.stage_clock import Stage
from trd_ray.trace import TraceWriter

NAMES = [f"generator-{i}" for i in range(3)]


def watched(hand: HandClock) -> RoleActivity:
    activity = RoleActivity(hand)
    for name in NAMES:
        activity.add(name, Role.GENERATOR)
    activity.add("teacher-0", Role.TEACHER)
    activity.add("learner", Role.LEARNER)
    return activity


def events_of(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def slices(events: list[dict]) -> dict[str, list[tuple[int, int, str]]]:
    """(begin, end, name) by thread, in order of time."""
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    found = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            found[threads[e["tid"]]].append((e["ts"], e["ts"] + e["dur"], e["name"]))
    return {name: sorted(rows) for name, rows in found.items()}


def is_busy(name: str) -> bool:
    return not name.startswith(("waiting", "idle", "down"))


def test_slices_never_overlap_and_cover_the_busy_time_of_the_metrics(tmp_path):
    rng = random.Random(1)
    hand = HandClock()
    activity = watched(hand)
    actors = [*NAMES, "teacher-0", "learner"]
    contexts = [
        lambda: activity.serving(rng.choice(actors), rng.choice(list(Stage))),
        lambda: activity.waiting("learner", WaitReason.STARVED),
        lambda: activity.down(rng.choice(NAMES)),
        lambda: activity.holding(Role.GENERATOR, WaitReason.STALENESS),
    ]
    laps, entered = [], []
    with TraceWriter(tmp_path / "trace.json", num_steps=50) as trace:
        activity.listen(trace)
        for step in range(1, 11):
            for _ in range(100):
                # Many of the changes are closer than a viewer shows, so that slices are joined.
                hand.at += rng.choice([0.0, 2.0**-14, 2.0**-12, 2.0**-6, 0.125])
                if entered and rng.random() < 0.55:
                    entered.pop(rng.randrange(len(entered))).__exit__(None, None, None)
                else:
                    entered.append(rng.choice(contexts)())
                    entered[-1].__enter__()
            laps.append(activity.lap(learner_step=step))
    rows = slices(events_of(tmp_path / "trace.json"))
    assert set(rows) == {*actors, "any generator", "any teacher", "any learner", "steps"}
    for track in rows.values():
        for before, after in itertools.pairwise(track):
            assert before[1] <= after[0]
    num_slices = sum(len(track) for track in rows.values())
    for role in (Role.GENERATOR, Role.TEACHER, Role.LEARNER):
        of_role = [name for name in actors if name.startswith(role)]
        traced = sum(end - begin for n in of_role for begin, end, name in rows[n] if is_busy(name))
        measured = sum(lap.roles[role].busy_s * len(of_role) for lap in laps)
        assert traced / 1e6 == pytest.approx(measured, abs=num_slices * 1e-6)
        down = sum(end - begin for n in of_role for begin, end, name in rows[n] if name == "down")
        assert down / 1e6 == pytest.approx(
            sum(lap.roles[role].down_s * len(of_role) for lap in laps), abs=num_slices * 1e-6
        )
    assert [name for _, _, name in rows["steps"]] == [f"step {n}" for n in range(1, 11)]
    lasted = sum(end - begin for begin, end, _ in rows["steps"])
    assert lasted / 1e6 == pytest.approx(sum(lap.step_s for lap in laps), abs=2e-5)


# The trace event format, as far as we write it: what an event of each phase must have.
_FIELDS = {
    "X": {"name": str, "ts": int, "dur": int, "pid": int, "tid": int},
    "C": {"name": str, "ts": int, "pid": int, "args": dict},
    "i": {"name": str, "ts": int, "pid": int, "tid": int, "s": str},
    "M": {"name": str, "pid": int, "args": dict},
}
_METADATA = {
    "process_name": str, "process_sort_index": int, "thread_name": str, "thread_sort_index": int,
}  # fmt: skip


def require_valid(events: list[dict]) -> None:
    """Every event is one that viewers of the format know how to read."""
    processes = {e["pid"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    for e in events:
        for field, kind in _FIELDS[e["ph"]].items():
            assert type(e[field]) is kind, e
        assert e["name"] and e["pid"] in processes, e
        assert min(e.get("ts", 0), e.get("dur", 0)) >= 0, e
        match e["ph"]:
            case "X":
                assert (e["pid"], e["tid"]) in threads, e
            case "C":
                assert e["args"] and all(type(value) in (int, float) for value in e["args"].values()), e
            case "i":
                assert e["s"] in ("g", "p", "t"), e
            case "M":
                assert [type(value) for value in e["args"].values()] == [_METADATA[e["name"]]], e


def test_every_event_has_what_its_phase_needs(tmp_path):
    path = tmp_path / "trace.json"
    hand = HandClock()
    for first_step in (1, 3):
        activity = watched(hand)
        with TraceWriter(path, num_steps=50, first_step=first_step) as trace:
            activity.listen(trace)
            for number in (first_step, first_step + 1):
                with activity.serving("generator-0", Stage.ROLLOUT), activity.queue(Role.TEACHER):
                    hand.at += 1.0
                with activity.down("generator-1"), activity.waiting("learner", WaitReason.STARVED):
                    hand.at += 1.0
                activity.mark("push", f"of version {number}")
                activity.lap(learner_step=number)
    events = events_of(path)
    require_valid(events)
    assert {e["ph"] for e in events} == set(_FIELDS)
    with pytest.raises(KeyError):
        require_valid([*events, {"name": "x", "ph": "X", "ts": 1, "pid": 1, "tid": 1}])


def test_bubbles_say_why(tmp_path):
    hand = HandClock()
    activity = watched(hand)
    with TraceWriter(tmp_path / "trace.json", num_steps=50) as trace:
        activity.listen(trace)
        with activity.serving("teacher-0", Stage.REFINE):
            hand.at += 1.0
            with activity.serving("teacher-0", Stage.SCORE):
                hand.at += 1.0
        with activity.holding(Role.GENERATOR, WaitReason.STALENESS):
            hand.at += 1.0
            with activity.serving("generator-1", Stage.ROLLOUT):
                hand.at += 1.0
        with activity.waiting("learner", WaitReason.STARVED):
            hand.at += 1.0
        with activity.down("generator-2"):
            hand.at += 1.0
        activity.mark("push", "of version 1")
    events = events_of(tmp_path / "trace.json")
    second = 1_000_000
    rows = slices(events)
    assert rows["teacher-0"] == [
        (0, second, "refine"), (second, 2 * second, "refine+score"), (2 * second, 6 * second, "idle"),
    ]  # fmt: skip
    assert rows["generator-1"] == [
        (0, 2 * second, "idle"), (2 * second, 3 * second, "waiting: staleness"),
        (3 * second, 4 * second, "rollout"), (4 * second, 6 * second, "idle"),
    ]  # fmt: skip
    assert rows["any generator"] == rows["generator-1"]
    assert rows["learner"][1] == (4 * second, 5 * second, "waiting: starved")
    assert rows["generator-2"][-1] == (5 * second, 6 * second, "down")
    marks = [(e["name"], e["ts"]) for e in events if e["ph"] == "i"]
    assert marks == [("restart generator-2", 5 * second), ("push of version 1", 6 * second)]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {1: "run", 2: "generator", 3: "teacher", 4: "learner"}


def test_short_slices_are_joined_and_short_bubbles_left_out(tmp_path):
    hand = HandClock()
    activity = watched(hand)
    with TraceWriter(tmp_path / "trace.json", num_steps=50) as trace:
        activity.listen(trace)
        teacher = activity.actor("teacher-0")
        with teacher.serving(Stage.REFINE):
            for _ in range(1024):
                with teacher.serving(Stage.SCORE):
                    hand.at += 2.0**-12
                hand.at += 2.0**-12
        for _ in range(1024):
            with activity.queue(Role.TEACHER):
                hand.at += 2.0**-12
    events = events_of(tmp_path / "trace.json")
    track = slices(events)["teacher-0"]
    assert {name for _, _, name in track} == {"refine+score", "idle"}
    assert sum(end - begin for begin, end, name in track if is_busy(name)) == 500_000
    assert len(track) < 502  # of a millisecond and more
    depths = [e for e in events if e["ph"] == "C" and e["name"] == "teacher_queue"]
    assert 200 < len(depths) < 502
    assert depths[-1]["args"] == {"number": 0}  # the last value is never lost
    assert {e["pid"] for e in depths} == {3}


def test_the_first_steps_are_traced_and_then_two_in_a_hundred(tmp_path):
    hand = HandClock()
    activity = watched(hand)
    with TraceWriter(tmp_path / "trace.json", num_steps=3) as trace:
        activity.listen(trace)
        for step in range(1, 251):
            with activity.serving("learner", Stage.LEARN):
                hand.at += 1.0
            hand.at += 1.0
            activity.lap(learner_step=step)
    rows = slices(events_of(tmp_path / "trace.json"))
    steps = [int(name.removeprefix("step ")) for _, _, name in rows["steps"]]
    assert steps == [1, 2, 3, 100, 101, 200, 201]
    assert len([row for row in rows["learner"] if row[2] == "learn"]) == len(steps)
    assert [row[0] for row in rows["learner"] if row[2] == "learn"] == [row[0] for row in rows["steps"]]


def test_a_killed_run_leaves_whole_events_and_a_resumed_one_goes_on_behind_them(tmp_path):
    path = tmp_path / "trace.json"
    hand = HandClock()
    activity = watched(hand)
    killed = TraceWriter(path, num_steps=50)
    activity.listen(killed)
    with activity.serving("learner", Stage.LEARN):
        hand.at += 1.0
    activity.lap(learner_step=1)
    text = path.read_text()
    assert json.loads(text + "]")  # all that the format leaves out is the bracket
    path.write_text(text + ',\n{"name":"torn","ph":"X","ts":17')
    hand.at += 5000.0
    resumed = watched(hand)
    with TraceWriter(path, num_steps=50, first_step=2) as trace:
        resumed.listen(trace)
        with resumed.serving("learner", Stage.LEARN):
            hand.at += 1.0
        resumed.lap(learner_step=2)
    events = events_of(path)
    assert [row for row in slices(events)["learner"] if row[2] == "learn"] == [
        (0, 1_000_000, "learn"),
        (2_000_000, 3_000_000, "learn"),
    ]
    assert [e["ts"] for e in events if e["name"] == "resumed before step 2"] == [2_000_000]
    with TraceWriter(path, num_steps=50, first_step=3) as trace:  # a closed file is opened again
        watched(hand).listen(trace)
    assert any(e["name"] == "resumed before step 3" for e in events_of(path))
    assert not any(e["name"] == "torn" for e in events_of(path))


@pytest.mark.parametrize("before", ["", "[", "[]\n", "not json\n"])
def test_a_file_without_an_event_is_begun_anew(tmp_path, before):
    path = tmp_path / "trace.json"
    path.write_text(before)
    hand = HandClock()
    with TraceWriter(path, num_steps=50) as trace:
        watched(hand).listen(trace)
        hand.at += 1.0
    assert events_of(path)[0]["name"] == "process_name"


def test_a_trace_of_nothing_is_valid(tmp_path):
    TraceWriter(tmp_path / "trace.json", num_steps=50).close()
    assert events_of(tmp_path / "trace.json") == []


def test_the_file_never_grows_beyond_its_limit_and_stays_valid(tmp_path, caplog):
    path = tmp_path / "trace.json"
    hand = HandClock()
    activity = watched(hand)
    with (
        caplog.at_level(logging.WARNING),
        TraceWriter(path, num_steps=50, max_bytes=20_000) as trace,
    ):
        activity.listen(trace)
        for step in range(1, 51):
            for _ in range(100):
                with activity.serving("learner", Stage.LEARN):
                    hand.at += 0.25
                hand.at += 0.25
            activity.lap(learner_step=step)
    assert path.stat().st_size < 20_000 + 200
    assert events_of(path)
    assert len([r for r in caplog.records if "is not continued" in r.getMessage()]) == 1
