"""A pipeline of real processes in a plain Python loop, with the two calls that perseusd needs.

    perseusd run --simulate 4 --runtime-dir DIR               # in one terminal
    PERSEUS_RUNTIME_DIR=DIR python examples/plain.py          # in another: 20 iterations, 15 s
    PERSEUS_RUNTIME_DIR=DIR perseusctl status --watch         # in a third

It also runs without a daemon. What a stage computes is a sleep, which stands for a GPU kernel: four
processes that computed would share this machine's cores, and take each other's time. The stages are
uneven, as in real models, so all but stage 1 have slack: `status` shows the critical path, and the
job going from baseline to learning. A sleep does not follow any clock, and no GPU works for it, so
there is nothing to be saved here; `perseusd demo` emulates that.
"""

import multiprocessing
import sys
import time

import perseus_hooks

STAGES = 4
MICROBATCHES = 6
FORWARD_S = (0.020, 0.033, 0.025, 0.022)  # by stage; a backward takes twice as long


def forward(stage, microbatch):
    time.sleep(FORWARD_S[stage])


def backward(stage, microbatch):
    time.sleep(2 * FORWARD_S[stage])


def one_f_one_b(stage):
    """The 1F1B schedule: some forwards, then forward and backward in turn, then the backwards."""
    ahead = min(STAGES - 1 - stage, MICROBATCHES)
    order = [("forward", m) for m in range(ahead)]
    for m in range(MICROBATCHES - ahead):
        order += [("forward", ahead + m), ("backward", m)]
    return order + [("backward", m) for m in range(MICROBATCHES - ahead, MICROBATCHES)]


def train(stage, before, after, together, iterations):
    """before, after: pipes to the stages beside this one, None at the ends."""
    perseus_hooks.configure(job="plain", rank=stage, stage=stage, stages=STAGES, gpus=[stage])
    for iteration in range(iterations):
        for instruction, microbatch in one_f_one_b(stage):
            source, target = (before, after) if instruction == "forward" else (after, before)
            if source is not None:
                assert source.recv() == (instruction, microbatch)  # waiting: outside of the span
            compute = forward if instruction == "forward" else backward
            with perseus_hooks.stage(instruction, microbatch=microbatch, iteration=iteration):
                compute(stage, microbatch)
            if target is not None:
                target.send((instruction, microbatch))
        together.wait()  # where the gradients' all-reduce and the optimizer are


def main(iterations=20):
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(STAGES)
    pipes = [context.Pipe() for _ in range(STAGES - 1)]
    before = [None, *(second for _, second in pipes)]
    after = [*(first for first, _ in pipes), None]
    ranks = [
        context.Process(
            target=train, args=(stage, before[stage], after[stage], together, iterations)
        )
        for stage in range(STAGES)
    ]
    what = f"{iterations} iterations on {STAGES} processes"
    print(f"{what}; watch: perseusctl status --watch", flush=True)
    began_s = time.monotonic()
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    failed = sum(rank.exitcode != 0 for rank in ranks)
    ended = f"{failed} processes failed" if failed else f"{iterations} iterations done"
    print(f"{ended}, {time.monotonic() - began_s:.0f} s")
    raise SystemExit(max(abs(rank.exitcode) for rank in ranks))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
