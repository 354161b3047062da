"""Limits per user: what is beyond is its own loss."""

from __future__ import annotations

from perseusd.daemon.quotas import KEPT_USERS, Bucket, QuestionQuotas, Quotas


def test_a_bucket_gives_so_much_at_once_and_so_much_a_second() -> None:
    """Full at first, refilled with time, never beyond its size; what it refuses costs nothing."""
    bucket = Bucket(per_s=8, at_once=3)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(100.0 + n / 16) for n in (1, 2, 2)] == [False, True, False]
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_one_users_flood_is_not_anothers() -> None:
    """Each uid has buckets of its own."""
    quotas = Quotas(events_per_s=2)
    assert [quotas.of(1).events.take(0.0) for _ in range(3)] == [True, True, False]
    assert quotas.of(2).events.take(0.0)
    questions = QuestionQuotas()
    while questions.take(1, 5.0):
        pass
    assert questions.take(2, 5.0)


def test_users_are_not_remembered_for_ever() -> None:
    """Whoever has many uids, by a user namespace, cannot fill the memory with them."""
    quotas = Quotas(events_per_s=2)
    for uid in range(2 * KEPT_USERS):
        quotas.of(uid)
    assert len(quotas._uses) == KEPT_USERS
