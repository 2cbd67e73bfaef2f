"""Orders by name: a curriculum with a preset in, the same curriculum spelled out as stages out.

Only the FRAME order, high-to-low PPL and low-to-high PD come from the papers; widths, folds and the
other arms are this project's.
"""

from __future__ import annotations

import dataclasses

import yaml

from frame_jax.config import AxesConfig, CurriculumConfig, StageConfig

WIDTH = 0.05  # of a sigmoid transition, in epochs


def preset(name: str, axes: AxesConfig) -> CurriculumConfig:
    """The stages of a preset on any grid of PPL and PD bins.

    FRAME's rule on K x M bins: PPL from high to low outside, PD from low to high inside.
    """
    up_ppl, up_pd = range(axes.ppl), range(axes.pd)
    down_ppl, down_pd = up_ppl[::-1], up_pd[::-1]

    def stages(*groups: list[str]) -> list[StageConfig]:
        return [StageConfig({cell: 1.0 for cell in group}) for group in groups]

    frame = stages(*([axes.cell(p, d)] for p in down_ppl for d in up_pd))
    pd_ascending = stages(*([axes.cell(p, d) for p in up_ppl] for d in up_pd))
    presets = {
        "frame": CurriculumConfig(stages=frame),
        "random": CurriculumConfig(stages=stages(list(axes.cells))),
        "ppl_descending": CurriculumConfig(
            stages=stages(*([axes.cell(p, d) for d in up_pd] for p in down_ppl))
        ),
        "ppl_ascending": CurriculumConfig(
            stages=stages(*([axes.cell(p, d) for d in up_pd] for p in up_ppl))
        ),
        "pd_ascending": CurriculumConfig(stages=pd_ascending),
        "pd_descending": CurriculumConfig(stages=pd_ascending[::-1]),
        "q3_q1_q4_q2": CurriculumConfig(
            stages=stages(*([axes.cell(p, d)] for d in up_pd for p in down_ppl))
        ),
        "reverse": CurriculumConfig(
            stages=stages(*([axes.cell(p, d)] for p in up_ppl for d in down_pd))
        ),
        "pdpc": CurriculumConfig(stages=pd_ascending, width=0.5),
        "folded": CurriculumConfig(stages=frame, width=0.02, folds=4),
    }
    return presets[name]


def expand(curriculum: CurriculumConfig, axes: AxesConfig) -> CurriculumConfig:
    """The curriculum as explicit stages, with nothing left to a preset or a default.

    What the curriculum itself gives (`transition`, `width`, `folds`, `epochs`) wins.
    """
    base = preset(curriculum.preset, axes) if curriculum.preset else curriculum
    transition = curriculum.transition or base.transition or "sigmoid"
    return dataclasses.replace(
        curriculum,
        preset=None,
        stages=base.stages,
        transition=transition,
        width=None if transition == "hard" else curriculum.width or base.width or WIDTH,
        folds=curriculum.folds or base.folds or 1,
    )


def as_yaml(curriculum: CurriculumConfig) -> str:
    """The curriculum as the YAML that a config file could hold, unset keys left out."""

    def tidy(value: object) -> object:
        if isinstance(value, dict):
            return {k: tidy(v) for k, v in value.items() if v is not None and v != []}
        return [tidy(v) for v in value] if isinstance(value, list) else value

    settings = tidy(dataclasses.asdict(curriculum))
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
