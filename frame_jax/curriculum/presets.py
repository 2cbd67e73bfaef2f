"""Named orders, and how they are spelled out as stages.

Only the FRAME order, high-to-low PPL and low-to-high PD come from the papers; widths, folds and the
other arms are this project's.
"""

import dataclasses
from collections.abc import Sequence

from frame_jax.config.curriculum import CurriculumConfig, StageConfig
from frame_jax.config.quadrants import AxesConfig

WIDTH = 0.05  # of a sigmoid transition, in epochs


def preset_stages(axes: AxesConfig) -> dict[str, CurriculumConfig]:
    """The stages of every preset on a grid of PPL and PD bins.

    FRAME's rule on K x M bins: PPL from high to low outside, PD from low to high inside.
    """

    def stages(*groups: Sequence[str]) -> list[StageConfig]:
        return [StageConfig({quadrant: 1.0 for quadrant in group}) for group in groups]

    name, ppl, pd = axes.quadrant_name, range(axes.ppl), range(axes.pd)
    of_ppl = [[name(p, d) for d in pd] for p in ppl]  # quadrants of each bin, from low to high
    of_pd = [[name(p, d) for p in ppl] for d in pd]
    frame = stages(*([quadrant] for quadrants in of_ppl[::-1] for quadrant in quadrants))
    q3_q1_q4_q2 = stages(*([quadrant] for quadrants in of_pd for quadrant in quadrants[::-1]))
    pd_ascending = stages(*of_pd)
    return {
        "frame": CurriculumConfig(stages=frame),
        "random": CurriculumConfig(stages=stages(axes.quadrants)),
        "ppl_descending": CurriculumConfig(stages=stages(*of_ppl[::-1])),
        "ppl_ascending": CurriculumConfig(stages=stages(*of_ppl)),
        "pd_ascending": CurriculumConfig(stages=pd_ascending),
        "pd_descending": CurriculumConfig(stages=pd_ascending[::-1]),
        "q3_q1_q4_q2": CurriculumConfig(stages=q3_q1_q4_q2),
        "reverse": CurriculumConfig(stages=frame[::-1]),
        "pdpc": CurriculumConfig(stages=pd_ascending, width=0.5),
        "folded": CurriculumConfig(stages=frame, width=0.02, folds=4),
        "random_again": CurriculumConfig(stages=stages(axes.quadrants), shuffle=1),
        "sawtooth": CurriculumConfig(stages=frame, width=0.1, folds=4),
        "there_and_back": CurriculumConfig(stages=frame + frame[-2::-1] + frame[1:]),
    }


def expand_curriculum(curriculum: CurriculumConfig, axes: AxesConfig) -> CurriculumConfig:
    """Spells a curriculum out as stages, with nothing left to a preset or a default.

    What the curriculum itself gives (`transition`, `width`, `folds`, `shuffle`, `epochs`) wins.
    """
    base = preset_stages(axes)[curriculum.preset] if curriculum.preset else curriculum
    transition = curriculum.transition or base.transition or "sigmoid"
    return dataclasses.replace(
        curriculum,
        preset=None,
        stages=base.stages,
        transition=transition,
        width=None if transition == "hard" else curriculum.width or base.width or WIDTH,
        folds=curriculum.folds or base.folds or 1,
        shuffle=curriculum.shuffle or base.shuffle,
    )
