"""A training run on the CPU that goes on when it is told to, and prints what came out.

For each line of standard input, `ITERATIONS [THREADS]`, it trains on: data from forked workers, a
forward and a backward span each microbatch, and so many other threads that call the hooks all the
time. It answers with the losses and parameters, bit by bit.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time

import torch
from perseus_hooks import configure, stage
from torch.utils.data import DataLoader, Dataset

MICROBATCHES = 4
WIDTH = 32


class Numbers(Dataset[torch.Tensor]):
    """What a worker makes: calls the hooks too, as user code in a worker may."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        with stage("other"):
            return torch.sin(torch.arange(WIDTH, dtype=torch.float32) * (index + 1))


class Training:
    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, 1)
        )
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.iteration = 0

    def run(self, iterations: int) -> str:
        """A digest of every loss and of the parameters."""
        digest = hashlib.sha256()
        for _ in range(iterations):
            self.optimizer.zero_grad()
            for microbatch in range(MICROBATCHES):
                digest.update(self._computed(microbatch).numpy().tobytes())
            self.optimizer.step()
            self.iteration += 1
        for parameter in self.model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        return digest.hexdigest()

    def _computed(self, microbatch: int) -> torch.Tensor:
        batch = torch.randn(8, WIDTH)
        with stage("forward", microbatch=microbatch, iteration=self.iteration):
            loss = self.model(batch).square().mean()
        with stage("backward", microbatch=microbatch, iteration=self.iteration):
            loss.backward()
        return loss.detach()

    def see_data(self) -> None:
        """Fork the workers, as a new epoch does."""
        for batch in DataLoader(Numbers(), batch_size=16, num_workers=2):
            self.model(batch).sum().item()


LOOKED_FOR_S = 1.5  # hooks that speak look for a socket once a second: it is found meanwhile


def calling(stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        with stage("other", microbatch=number % 8):
            number += 1
        time.sleep(0.001)


def main() -> None:
    torch.set_num_threads(1)
    configure(stage=0, stages=1, replica=0, replicas=1)
    training = Training()
    for line in sys.stdin:
        iterations, count = (int(word) for word in line.split())
        stop = threading.Event()
        threads = [threading.Thread(target=calling, args=(stop,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        if not count:  # PyTorch itself warns of forks beside threads
            training.see_data()
        told = training.run(iterations)
        if count:
            time.sleep(LOOKED_FOR_S)
        stop.set()
        for thread in threads:
            thread.join()
        sys.stdout.write(told + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
