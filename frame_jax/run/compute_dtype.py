"""Decides `compute_dtype: auto` once a run: bfloat16 where the device multiplies it, else float32.

The record is in the markers, each of which holds the type that its phase step began under. What has
begun in one type goes on in it, on whatever machine.
"""

from typing import Any

from frame_jax.config.run import RunConfig
from frame_jax.config.settings import flatten_settings, replace_setting, setting_at
from frame_jax.run import phases
from frame_jax.run.directory import RunDirectory
from frame_jax.run.markers import Marker, read_marker

AUTO = "auto"


def undecided_keys(settings: dict[str, Any]) -> list[str]:
    """Dotted keys, among flattened settings, whose value is left to the device."""
    return [k for k, value in settings.items() if k.endswith(".compute_dtype") and value == AUTO]


def with_recorded_types(config: RunConfig, directory: RunDirectory) -> RunConfig:
    """Replaces `auto` in `config` by the types the run recorded; does not import JAX.

    A setting that no phase step has begun under takes the type of the first phase step that began
    under one left to the device, so that a run computes in one type. Where nothing has begun,
    `auto` stays.
    """
    keys, known = undecided_keys(flatten_settings(config)), dict[str, str]()
    for phase_step in phases.list_phase_steps(config):
        settings = (read_marker(directory, phase_step.name) or Marker()).settings
        known |= {k: settings[k] for k in keys if k in settings and k not in known}
    usual = next(iter(known.values()), AUTO)
    for key in keys:
        config = replace_setting(config, key, known.get(key, usual))
    return config


def decide_types(config: RunConfig, so_far: RunConfig) -> tuple[RunConfig, list[str]]:
    """Replaces `auto` by process 0's decision, alike on all processes; returns what to tell, too.

    `config` is as the user gave it, `so_far` what `with_recorded_types` made of it.
    """
    import jax

    from frame_jax.parallel import processes
    from frame_jax.parallel.hardware import multiplies_bfloat16

    device = jax.local_devices()[0]
    native = "bfloat16" if multiplies_bfloat16(device) else "float32"
    fresh, kept = False, list[str]()
    for key in undecided_keys(flatten_settings(config)):
        choice = setting_at(so_far, key)
        if choice == AUTO:
            choice, fresh = native, True
        elif choice != native:
            kept.append(
                f"{key}: auto stays {choice}, in which this run began; {device.device_kind} would "
                f"take {native}. For that, say --{key} {native} and repeat the phase (--redo)"
            )
        config = replace_setting(config, key, processes.broadcast_from_first(choice))
    taken = f"compute_dtype: auto is {native} on {device.device_kind}"
    return config, [taken, *kept] if fresh else kept
