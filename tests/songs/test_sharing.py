"""Songs shared out among the processes of a job."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hunterFormsBS.failures import UsageError
from hunterFormsBS.songs.sharing import Rank, rank_in_job, share_of


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, Rank()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Rank(3, 8, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Rank(3, 8, 0)),
        ({"WORLD_SIZE": "8"}, Rank()),
        (
            {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"},
            Rank(2, 4, 1),
        ),
        # A script of sbatch, and the shell of salloc, which is a step of one task.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Rank()),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "9"}, Rank()),
        # torchrun within a job of Slurm
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "9"}, Rank(1, 2, 0)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1"}, Rank(1, 2, 1)),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            Rank(1, 2, 1),
        ),
    ],
)
def test_the_rank_is_what_the_launcher_says(environment: dict[str, str], job: Rank) -> None:
    assert rank_in_job(environment) == job


@pytest.mark.parametrize("rank", ["8", "-1", "x"])
def test_an_impossible_place_is_refused_with_what_was_said(rank: str) -> None:
    with pytest.raises(UsageError, match=f"RANK={rank}, WORLD_SIZE=8"):
        rank_in_job({"RANK": rank, "WORLD_SIZE": "8"})


@given(st.lists(st.floats(0, 1e5), max_size=60), st.integers(1, 9))
def test_every_song_is_in_one_share_longest_first_and_no_share_is_much_longer(lengths: list[float], size: int) -> None:
    items = list(range(len(lengths)))
    shares = [share_of(Rank(rank, size), items, lengths) for rank in range(size)]
    assert sorted(chain(*shares)) == items
    if size > 1:
        for share in shares:
            assert [lengths[item] for item in share] == sorted((lengths[item] for item in share), reverse=True)
        totals = [sum(lengths[item] for item in share) for share in shares]
        assert max(totals) - min(totals) <= max(lengths, default=0) + 1


def test_a_single_process_keeps_the_order() -> None:
    assert share_of(Rank(), ["b", "a"], []) == ["b", "a"]
