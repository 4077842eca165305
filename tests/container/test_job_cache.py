"""The platform's cache folder: each stage once, by fingerprint, also where two jobs race, and within its quota."""

import subprocess
import sys
import time
from pathlib import Path

from onepiece_comp.container.job_cache import JobCache
from onepiece_comp.logs.open_log import log_fingerprint

ROOT = Path(__file__).resolve().parents[2]
JOB = """
import sys, time
from pathlib import Path
from onepiece_comp.container.job_cache import JobCache
def make(out):
    out.mkdir()
    with open(sys.argv[1] + '/made', 'a') as file:
        file.write('once\\n')
    time.sleep(0.5)
    (out / 'whole').write_text('')
JobCache(sys.argv[1], quota_bytes=1e9).made('dataset', ['key'], 'whole', make)
"""


def _entry(size):
    def make(out):
        out.mkdir()
        (out / "whole").write_bytes(bytes(size))
    return make


def test_two_jobs_that_race_make_an_entry_once(tmp_path):
    jobs = [subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path)], cwd=ROOT) for _ in range(2)]
    assert [job.wait(60) for job in jobs] == [0, 0]
    assert (tmp_path / "made").read_text() == "once\n"


def test_what_was_used_longest_ago_goes_first_and_nothing_in_use(tmp_path, capsys):
    earlier = JobCache(tmp_path, quota_bytes=1000)
    old, used = (earlier.made(name, [1], "whole", _entry(300)) for name in ("old", "used"))
    earlier.close()
    time.sleep(0.02)
    other = JobCache(tmp_path, quota_bytes=1000)
    assert other.made("used", [1], "whole", None) == used
    now = JobCache(tmp_path, quota_bytes=1000)
    new = now.made("new", [1], "whole", _entry(600))
    assert used.exists() and new.exists() and not old.exists()
    now.made("more", [1], "whole", _entry(600))
    assert used.exists() and new.exists() and "warning" in capsys.readouterr().out


def test_another_key_is_another_entry(tmp_path):
    cache = JobCache(tmp_path, quota_bytes=1e9)
    assert cache.made("a", [1], "whole", _entry(1)) != cache.made("a", [2], "whole", _entry(1))


def test_the_fingerprint_of_a_log_follows_its_files_not_its_place(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "creative_emb").mkdir(parents=True)
        (tmp_path / place / "seq.jsonl").write_text("[]")
        (tmp_path / place / "creative_emb" / "part").write_text("1")
    first = log_fingerprint(tmp_path / "one")
    assert first == log_fingerprint(tmp_path / "two")
    (tmp_path / "two" / "creative_emb" / "part").write_text("2")
    assert first != log_fingerprint(tmp_path / "two")


def test_what_a_killed_job_left_half_written_is_removed_unless_its_entry_is_in_use(tmp_path):
    busy = JobCache(tmp_path, quota_bytes=1000)
    used = busy.made("used", [1], "whole", _entry(10))
    for name in (used.name, "onepiece-dead-0123"):
        half = tmp_path / f".{name}.writing-77"
        half.mkdir()
        (half / "part").write_bytes(bytes(5000))
    JobCache(tmp_path, quota_bytes=1000).made("other", [1], "whole", _entry(10))
    assert [path.name for path in tmp_path.glob(".*writing*")] == [f".{used.name}.writing-77"] and used.exists()
    busy.close()
    JobCache(tmp_path, quota_bytes=1000).made("used", [1], "whole", None)
    assert not list(tmp_path.glob(".*writing*"))
