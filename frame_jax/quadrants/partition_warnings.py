"""Warnings about a partition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from frame_jax.errors import UserError

WARN_DOCUMENT_SHARE = 0.1  # share of the documents that is worth a word
WARN_TIED_SHARE = (
    0.2  # share of the tokens, likewise, that nothing but ids puts on a side of a threshold
)


def partition_warnings(summary: dict[str, Any], ppl_model: str | None) -> Iterator[str]:
    """In words, what makes the quadrants differ by something else than PPL and PD.

    Args:
        summary: As `summary.summarise_partition` gives it.
        ppl_model: The model of the PPL axis; None where scores were made elsewhere.
    """
    documents, thin = assigned_documents(summary), summary["thin_groups"]
    if thin["groups"] > 1 and thin["documents"] > WARN_DOCUMENT_SHARE * documents:
        yield f"{small_groups_message(summary)} {REMEDY}"
    for name, share in zip(summary["names"], summary["tied"].values(), strict=True):
        if share > WARN_TIED_SHARE:
            yield (
                f"{share:.0%} of the training tokens are in documents whose {name} is exactly a "
                "threshold's, as others' is: on which side they come is decided by their ids, in "
                f"alphabetical order. Numbers with more different values than {name} has tell more"
            )
    if ppl_model is not None and 2 * summary["negative_pd"] > documents:
        yield (
            f"PD is negative for {summary['negative_pd']:,} of {documents:,} training documents: "
            "the weak reference model predicts them better than the strong one. Are "
            "reference.weak and reference.strong exchanged?"
        )


def require_groups(summary: dict[str, Any]) -> None:
    """Refuses a partition that groups so small have emptied.

    A document alone in its group is its own threshold, so all such land in the last quadrant, and
    an order of quadrants is no order.

    Raises:
        UserError: where most documents are in groups with fewer documents than there are quadrants
            and some quadrant has none, though the documents would fill them all.
    """
    documents, thin, quadrants = (
        assigned_documents(summary),
        summary["thin_groups"],
        summary["quadrants"],
    )
    empty = [name for name, quadrant in quadrants.items() if quadrant["documents"] == 0]
    crowded = documents >= len(quadrants) and thin["groups"] > 1
    if empty and crowded and 2 * thin["documents"] > documents:
        raise UserError(
            f"{small_groups_message(summary)} Nothing is left for {', '.join(empty)}. {REMEDY}"
        )


def require_values(summary: dict[str, Any]) -> None:
    """Refuses a partition along an axis on which all documents of each quadrant have one value.

    Raises:
        UserError: naming the axis.
    """
    for name, share in zip(summary["names"], summary["tied"].values(), strict=True):
        if share == 1:
            raise UserError(
                f"{name} has one value for all training documents that it should tell apart, and "
                "quadrants would be cut by the alphabetical order of their ids: name another "
                "column in scoring.table, or cut along the other axis alone (partition.axes)"
            )


REMEDY = (
    "Name columns with few values in partition.group_by, or set partition.min_group_tokens (such "
    "as 1000000): groups with fewer tokens share the thresholds of their language."
)


def assigned_documents(summary: dict[str, Any]) -> int:
    """Training documents with a place."""
    return sum(quadrant["documents"] for quadrant in summary["quadrants"].values())


def small_groups_message(summary: dict[str, Any]) -> str:
    """How many documents are in groups too small to be cut."""
    thin = summary["thin_groups"]
    columns = " and ".join(summary["group_by"]) or "nothing"
    return (
        f"{thin['documents']:,} of {assigned_documents(summary):,} training documents are in "
        "groups (by "
        f"{columns}) with fewer documents than there are quadrants ({thin['groups']:,} groups), "
        "where thresholds say nothing of PPL or PD."
    )
