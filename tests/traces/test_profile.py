"""Profile files: what is read, and what is refused with file, line, value and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from perseusd.errors import ProfileError
from perseusd.traces.profile import read_profile

HEAD = "stage,instruction,frequency,time,energy\n"
GOOD = (
    HEAD
    + "0,forward,1410,0.05,20\n0,forward,1200,0.06,17\n"
    + "0,backward,1410,0.1,40\n0,backward,1200,0.12,34\n"
)


def write(folder: Path, text: str) -> Path:
    path = folder / "profile.csv"
    path.write_text(text)
    return path


def test_rows_become_curves_ascending_in_clock(tmp_path: Path) -> None:
    """Any order of rows, extra columns, blank lines and numbers written as floats are fine."""
    text = "note," + GOOD.replace("\n", " \nx,", 4).rstrip("x,") + "\n"
    assert read_profile(write(tmp_path, text)) == read_profile(write(tmp_path, GOOD))
    curve = read_profile(write(tmp_path, GOOD.replace("1410", "1410.0")))[0, "forward"]
    assert (curve.clock_mhz, curve.time_s, curve.energy_j) == ((1200, 1410), (0.06, 0.05), (17, 20))


def test_the_real_profiles_are_read(shared_data: Path) -> None:
    """Eight stages, forward and backward each, 38 clocks on A100 and 60 on A40."""
    for gpu, clocks in (("a100_sxm", 38), ("a40", 60)):
        path = shared_data / "perseus-sosp24" / "stage_profile" / f"gpt3-175b_{gpu}.csv"
        curves = read_profile(path)
        assert set(curves) == {(s, i) for s in range(8) for i in ("forward", "backward")}
        assert {len(curve.clock_mhz) for curve in curves.values()} == {clocks}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is empty: the first line must be stage,instruction,frequency,time,energy"),
        ("stage,time\n", r":1: no column instruction, frequency, energy: the first line must be"),
        (GOOD.replace(",", ";"), r":1: columns are separated by ';': use commas"),
        (GOOD.replace(",", "\t"), r":1: columns are separated by '\\t': use commas"),
        (GOOD.replace("time,", "time,time,"), r":1: column time is there twice"),
        (GOOD.replace("0.06", "0,06"), r":3: more values than columns: decimals are written with"),
        (GOOD.replace("energy", "joules"), r":1: no column energy: the first line must be"),
        (HEAD, r"no rows"),
        (GOOD.replace("0.06", "fast"), r":3: time is 'fast', not a number"),
        (GOOD.replace(",17", ""), r":3: energy is '', not a number"),
        (GOOD.replace("0.06", "-0.06"), r":3: time is -0.06: must be > 0"),
        (GOOD.replace(",40", ",0"), r":4: energy is 0: must be > 0"),
        (GOOD.replace("0.12", "nan"), r":5: time is nan: must be finite"),
        (GOOD.replace("0.12", "inf"), r":5: time is inf: must be finite"),
        (
            GOOD.replace("backward,1200", "backward,1410"),
            r":5: backward of stage 0 at 1410 MHz .*tw",
        ),
        (
            GOOD.replace("1200", "1200.5"),
            r":3: frequency is 1200.5: must be a whole number ≥ 1 MHz",
        ),
        (
            GOOD.replace("0,forward", "-1,forward", 1),
            r":2: stage is -1: must be a whole number ≥ 0",
        ),
        (GOOD.replace("forward", "fwd"), r":2: unknown instruction 'fwd': use one of forward"),
        (GOOD.replace("0,backward,1200,0.12,34\n", ""), r"backward of stage 0 has one clock only"),
        (GOOD + "1,forward,1410,1,1\n1,forward,1200,1,1\n", r"stage 1 has no backward"),
    ],
)
def test_a_bad_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Every way in which a profile is wrong has its own message, which says where."""
    path = write(tmp_path, text)
    with pytest.raises(ProfileError, match=message) as caught:
        read_profile(path)
    assert str(path) in str(caught.value)


def test_a_gap_in_the_stages_is_named(tmp_path: Path) -> None:
    """Stages count from 0: a file with stages 0 and 2 lacks stage 1."""
    rows = GOOD[len(HEAD) :].splitlines()
    text = GOOD + "".join(f"2{row[1:]}\n" for row in rows)
    with pytest.raises(ProfileError, match="stage 1 is missing: stages count from 0"):
        read_profile(write(tmp_path, text))


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    """The system's reason and the path come with it."""
    with pytest.raises(ProfileError, match=r"nowhere\.csv cannot be read"):
        read_profile(tmp_path / "nowhere.csv")
    with pytest.raises(ProfileError, match=r"cannot be read as a profile \(Is a directory\)"):
        read_profile(tmp_path)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01stage")
    with pytest.raises(ProfileError, match=r"binary\.csv cannot be read"):
        read_profile(binary)
