import platform
import subprocess
import sys

import pytest

# Reports how many pages the system had to hand out for blocks that are freed and allocated again, and what stays.
PROBE = """
import ctypes, resource
from contextlib import nullcontext
import torch
from skylib.device import kept_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

SIZES = [6_000_000] * 5 + [25_000_000]  # 24 and 100 MB: 54,000 pages in all

def work(sizes):
    blocks = [torch.ones(n) for n in sizes]

def repeated(context, between, sizes=SIZES):
    with context:
        for _ in range(5):  # until the blocks have found their places
            work(sizes)
        with between:
            pass
        before = faults()
        for _ in range(5):
            work(sizes)
        return faults() - before

before = resident()
plain = repeated(nullcontext(), nullcontext())
kept = repeated(kept_memory(torch.device('cpu')), kept_memory(torch.device('cpu')))
left = resident() - before
small = repeated(nullcontext(), nullcontext(), sizes=[5_000_000])  # 20 MB
print(plain, kept, left, small)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_freed_memory_is_used_again_and_given_back_in_the_end():
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    plain, kept, left, small = map(int, result.stdout.split())
    assert plain > 200  # without it, pages come from the system each time: huge ones where it has these
    assert kept < 0.1 * plain  # and a context within another does not end it
    assert left < 5_000
    assert small < 200  # afterwards glibc keeps a single block, as it does by itself
