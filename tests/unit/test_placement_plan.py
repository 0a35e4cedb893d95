"""Who gets which devices, what is refused, and how it is drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trd_ray.choices import Device, Divergence, PlacementMode, PlacementStrategy, RefineGate, SyncBackend
from trd_ray.config import (
    EngineConfig,
    GeneratorConfig,
    LearnerConfig,
    MethodConfig,
    PipelineConfig,
    PlacementConfig,
    RefineGateConfig,
    ResourceConfig,
    TeacherConfig,
    TrdConfig,
    WeightSyncConfig,
)
from trd_ray.errors import ConfigError
from trd_ray.placement_drawing import draw_placement
from trd_ray.placement_plan import generator_plan, placement_plan
from trd_ray.types import TeacherContext, TrajectorySource


def on_gpus(
    *, generators: int, generator_tp: int, teachers: int, teacher_tp: int, ranks: int, colocated: bool
) -> TrdConfig:
    def engine(size: int) -> EngineConfig:
        return EngineConfig(device=Device.CUDA, tensor_parallel_size=size)

    return TrdConfig(
        placement=PlacementConfig(mode=PlacementMode.COLOCATED if colocated else PlacementMode.DISAGGREGATED),
        generator=GeneratorConfig(
            num_actors=generators,
            engine=engine(generator_tp),
            resources=ResourceConfig(cpus=4, gpus=generator_tp, memory_gib=32),
        ),
        teacher=TeacherConfig(
            num_actors=teachers,
            engine=engine(teacher_tp),
            resources=ResourceConfig(cpus=4, gpus=teacher_tp, memory_gib=32),
        ),
        learner=LearnerConfig(
            num_ranks=ranks,
            device=Device.CUDA,
            resources=ResourceConfig(cpus=2, gpus=1, memory_gib=16),
            zero_stage=2,
        ),
        weight_sync=WeightSyncConfig(backend=SyncBackend.CPU if colocated else SyncBackend.NCCL),
    )


def test_disaggregated_each_actor_has_a_bundle_of_its_own():
    config = TrdConfig(
        generator=GeneratorConfig(num_actors=2, resources=ResourceConfig(cpus=3)),
        learner=LearnerConfig(num_ranks=2),
    )
    plan = placement_plan(config)
    names = ["learner-0", "learner-1", "generator-0", "generator-1", "teacher-0"]
    assert [seat.name for seat in plan.seats] == names
    assert [seat.bundle for seat in plan.seats] == [0, 1, 2, 3, 4]
    assert plan.bundles[2].resources == plan.seats[2].asked == ResourceConfig(cpus=3)
    assert [seat.name for seat in generator_plan(config).seats] == ["generator-0", "generator-1"]


def test_an_engine_over_several_gpus_is_in_one_bundle():
    plan = placement_plan(
        on_gpus(generators=1, generator_tp=4, teachers=1, teacher_tp=2, ranks=2, colocated=False)
    )
    assert [bundle.num_gpus for bundle in plan.bundles] == [1, 1, 4, 2]
    assert plan.seats[2].devices == (0, 1, 2, 3)


def test_colocated_three_roles_share_each_gpu():
    plan = placement_plan(
        on_gpus(generators=2, generator_tp=1, teachers=2, teacher_tp=1, ranks=2, colocated=True)
    )
    assert [[s.name for s in b.seats] for b in plan.bundles] == [
        ["learner-0", "generator-0", "teacher-0"],
        ["learner-1", "generator-1", "teacher-1"],
    ]
    first = plan.bundles[0]
    assert [seat.asked.gpus for seat in first.seats] == [0.3333] * 3
    # Cores in turns: as many as the hungriest role needs. Memory side by side.
    assert first.resources == ResourceConfig(cpus=4, gpus=1, memory_gib=80)
    assert sum(seat.asked.cpus for seat in first.seats) == pytest.approx(4, abs=1e-3)


def test_colocated_engines_and_ranks_share_a_device_group():
    plan = placement_plan(
        on_gpus(generators=2, generator_tp=2, teachers=1, teacher_tp=4, ranks=4, colocated=True)
    )
    (group,) = plan.bundles
    assert group.num_gpus == 4
    assert {seat.name: seat.devices for seat in group.seats} == {
        "learner-0": (0,), "learner-1": (1,), "learner-2": (2,), "learner-3": (3,),
        "generator-0": (0, 1), "generator-1": (2, 3), "teacher-0": (0, 1, 2, 3),
    }  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_fractions_always_fit_one_by_one_on_the_gpus_of_their_bundle(ranks: int, size: int):
    if ranks % size:
        return
    config = on_gpus(
        generators=ranks // size, generator_tp=size, teachers=ranks, teacher_tp=1, ranks=ranks, colocated=True
    )
    for bundle in placement_plan(config).bundles[:-1]:
        (fraction,) = {seat.asked.gpus for seat in bundle.seats}
        assert int(1 / fraction) * bundle.num_gpus >= len(bundle.seats)
        assert sum(seat.asked.cpus for seat in bundle.seats) <= bundle.resources.cpus + 1e-9


def test_a_method_without_teacher_shares_between_two():
    config = on_gpus(generators=1, generator_tp=1, teachers=1, teacher_tp=1, ranks=1, colocated=True)
    alone = MethodConfig(trajectory=TrajectorySource.REFERENCE, teacher_context=TeacherContext.PROMPT,
                         divergence=Divergence.NLL)  # fmt: skip
    (bundle,) = placement_plan(replace(config, method=alone)).bundles
    assert [(seat.name, seat.asked.gpus) for seat in bundle.seats] == [
        ("learner-0", 0.5),
        ("generator-0", 0.5),
    ]


COLOCATED = PlacementConfig(mode=PlacementMode.COLOCATED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": PipelineConfig(max_staleness=1, stage_barrier=False)}, "max_staleness"),
        ({"pipeline": PipelineConfig(stage_barrier=False)}, "stage_barrier"),
        ({"learner": LearnerConfig(num_ranks=2)}, r"learner\.num_ranks = 2"),
        ({"teacher": TeacherConfig(num_actors=3)}, r"teacher\.num_actors"),
        (
            {
                "method": MethodConfig(
                    trajectory=TrajectorySource.SPECULATIVE, teacher_context=TeacherContext.PROMPT
                )
            },
            "together",
        ),
        (
            {"method": MethodConfig(refine_gate=RefineGateConfig(kind=RefineGate.MIN_SUPPORT))},
            "asks the student",
        ),
    ],
)
def test_what_cannot_take_turns_is_refused(changes: dict, message: str):
    TrdConfig(placement=COLOCATED)
    TrdConfig(**changes)
    with pytest.raises(ConfigError, match=message):
        TrdConfig(placement=COLOCATED, **changes)


def test_colocated_on_gpus_pushes_through_host_memory():
    config = on_gpus(generators=1, generator_tp=1, teachers=1, teacher_tp=1, ranks=1, colocated=True)
    with pytest.raises(ConfigError, match=r"weight_sync\.backend=cpu"):
        replace(config, weight_sync=WeightSyncConfig(backend=SyncBackend.NCCL))


def test_colocated_a_learner_must_be_able_to_leave_its_gpu():
    config = on_gpus(generators=1, generator_tp=1, teachers=1, teacher_tp=1, ranks=1, colocated=True)
    for stage in (1, 3):
        with pytest.raises(ConfigError, match=r"learner\.zero_stage=2"):
            replace(config, learner=replace(config.learner, zero_stage=stage))


def test_an_engine_larger_than_a_node_is_refused():
    with pytest.raises(ConfigError, match="one engine is on one node"):
        on_gpus(generators=1, generator_tp=16, teachers=1, teacher_tp=1, ranks=1, colocated=False)


def test_drawn_disaggregated_over_two_nodes():
    config = on_gpus(generators=2, generator_tp=4, teachers=1, teacher_tp=4, ranks=3, colocated=False)
    assert draw_placement(placement_plan(config), gpus_per_node=8) == (
        "6 actors in 6 bundles; pack",
        "node 0, 1 of 8 GPUs free",
        "  GPU 0     learner-0 (2 cores, 16 GiB)",
        "  GPU 1     learner-1 (2 cores, 16 GiB)",
        "  GPU 2     learner-2 (2 cores, 16 GiB)",
        "  GPU 3-6   generator-0, tensor parallel 4 (4 cores, 32 GiB)",
        "node 1, 0 of 8 GPUs free",
        "  GPU 0-3   generator-1, tensor parallel 4 (4 cores, 32 GiB)",
        "  GPU 4-7   teacher-0, tensor parallel 4 (4 cores, 32 GiB)",
    )


def test_drawn_colocated():
    config = on_gpus(generators=1, generator_tp=2, teachers=1, teacher_tp=2, ranks=2, colocated=True)
    assert draw_placement(placement_plan(config), gpus_per_node=8) == (
        "4 actors in 1 bundle, 1 of them shared in turns; pack",
        "node 0, 6 of 8 GPUs free",
        "  GPU 0-1   in turns (4 cores, 96 GiB):",
        "              learner-0 on GPU 0, asks for 0.5 GPU",
        "              learner-1 on GPU 1, asks for 0.5 GPU",
        "              generator-0, tensor parallel 2 on GPU 0-1, asks for 0.5 GPU",
        "              teacher-0, tensor parallel 2 on GPU 0-1, asks for 0.5 GPU",
    )


def test_spread_draws_bundles_on_the_emptiest_node():
    config = on_gpus(generators=2, generator_tp=4, teachers=1, teacher_tp=4, ranks=2, colocated=False)
    plan = replace(placement_plan(config), strategy=PlacementStrategy.SPREAD)
    lines = draw_placement(plan, gpus_per_node=8)
    nodes = [i for i, line in enumerate(lines) if line.startswith("node")]
    assert any("learner-0" in line for line in lines[nodes[0] : nodes[1]])
    assert any("learner-1" in line for line in lines[nodes[1] :])


def test_drawn_without_gpus():
    lines = draw_placement(placement_plan(TrdConfig(placement=COLOCATED)), gpus_per_node=8)
    assert lines[1] == "node 0 (no GPUs)"
    assert "              generator-0" in lines
