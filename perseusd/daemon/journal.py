"""What a log line is about, as fields of the journal's."""

from __future__ import annotations

from typing import Any

from perseusd.core.actions import Notice
from perseusd.core.jobs.why import code_of
from perseusd.logs import MessageId, fields


def of_notice(notice: Notice) -> dict[str, Any]:
    """For `extra=`: the job, and the state that it went to or the straggler that it has."""
    if (straggler := notice.straggler) is not None:
        return fields(
            MessageId.STRAGGLER,
            job=notice.job,
            replica=straggler.replica,
            stage=straggler.stage,
            rank=straggler.rank,
            factor=f"{straggler.factor:.3f}",
            cause=straggler.cause,
            over="no" if straggler.until_iteration is None else "yes",
        )
    if notice.state is not None:
        code = code_of(notice.why)
        return fields(MessageId.STATE, job=notice.job, state=notice.state, why_code=code)
    return fields(job=notice.job)
