"""The training loop, as it runs in each Ray Train worker.

All workers take the same decisions: what one of them finds out (a broken data set, a loss that is
not finite) is shared before any of them acts on it, so that none waits for a partner that left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pmm_ray.runtime.cluster.connect import one_thread, scratch_folder
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError
from pmm_ray.runtime.training.checkpoint import (
    CheckpointWriter,
    forget_local,
    load_best,
    load_checkpoint,
    newest,
)
from pmm_ray.runtime.training.feed import Feed
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.runtime.training.loader import Batch, batches
from pmm_ray.runtime.training.log import TrainLog
from pmm_ray.runtime.training.losses import WorkerFailedError
from pmm_ray.runtime.training.ranks import (
    distributed,
    drifting_buffers,
    first_problem,
    gradients_stay,
    largest,
    total,
)
from pmm_ray.runtime.training.readings import Readings, Unread, step_if
from pmm_ray.runtime.training.reporter import SCORING, TRAINING, Phase
from pmm_ray.runtime.training.sampling import BatchPlan, sample_seed

# steps from one reading of the loss to the next: each makes the CPU wait for the device
_READ_EVERY = {"cpu": 1, "cuda": 10}
_REPORT_SECONDS = 0.3
# at the end of a training, for what must be written: a store tries for a minute
_LAST_WRITE_SECONDS = 600.0
# and where a worker fails, for the checkpoint under way
_END_SECONDS = 30.0


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs on every worker.

    Args:
        config: `job` (a TrainingJob) and `reporter` (handle of the driver's `Reporter`).

    Returns:
        `steps`, `loss`, `images_per_second`, `seconds`, `loader_wait` (share of the steps' time
        that the worker waited for images), `skipped`, means of what is watched; or `stopped`: a
        reason that a restart would not remove, and whether the run's next attempt `may_pass`.
    """
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    rank = context.get_world_rank()
    with Phase(config["reporter"], rank).told() as phase:
        try:
            worker = _Worker(
                config["job"],
                config["reporter"],
                rank,
                context.get_world_size(),
                ray.train.torch.get_device(),
                phase,
            )
            return worker.run()
        except Exception as error:  # the driver judges it, and wants to know where it was
            raise WorkerFailedError.of(error) from error


class _Worker:
    def __init__(
        self,
        job: TrainingJob,
        reporter: Any,
        rank: int,
        world: int,
        device: torch.device,
        phase: Phase,
    ) -> None:
        self.job = job
        self.task = job.task
        self.config = job.config
        self.rank, self.world = rank, world
        self.device = device
        self.reporter = reporter
        self.phase = phase
        self.feed = Feed(job, reporter)
        self.plan = BatchPlan(job.task.seed, job.images, job.config.batch_size, world)
        every = _READ_EVERY[device.type]
        self.readings = Readings(job.stage, job.steps, world, every, self._note)
        self.reported = 0.0
        self.recent: list[float] = []  # losses before this attempt
        self.validation: dict[str, float] = {}
        self.best = (0, -math.inf)  # steps, and what the network scored after them
        self.workers = [[0, world]]  # how many, from which step on
        self.log: TrainLog | None = None
        self.writer: CheckpointWriter | None = None
        self.answered = 0  # of the driver's requests to save at once

    def run(self) -> dict[str, Any]:
        one_thread()
        if self.device.type == "cpu":
            torch.set_num_threads(self.config.threads_per_worker)
        try:
            self._prepare()
        except CannotRunError as error:
            self.feed.problem = error
        reason = self._shared_problem()
        if reason is None:
            try:
                result, reason = self._train()
            finally:
                if self.writer is not None:
                    self.writer.close(_END_SECONDS)
                if self.log is not None:
                    self.log.close()
        if reason is None:
            return result
        return {"stopped": str(reason), "may_pass": isinstance(reason, MayPassError)}

    def _prepare(self) -> None:
        self.phase.set("prepares its data")
        self.scratch = scratch_folder(self.job.runtime)
        self.task.prepare(
            self.scratch, lambda done, total: self.phase.set("prepares masks", done, total)
        )
        self.phase.set("builds the network")
        self.dataset = self.task.dataset()
        if len(self.dataset) != self.job.images:
            raise CannotRunError(
                f"{self.job.stage}: {len(self.dataset)} training images instead of "
                f"{self.job.images}: the manifest or the masks changed while it started"
            )
        torch.manual_seed(self.task.seed)
        self.module = self.task.build().to(self.device).train()
        if self.config.channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = self.task.optimizer(self.module.network)

    def _train(self) -> tuple[dict[str, Any], CannotRunError | None]:
        first = self._resume()
        ranks = distributed(self.module, self.job, self.world, self.device)
        if self.rank == 0:
            self.log = TrainLog(self.job, first, self.recent)
            self.writer = CheckpointWriter(
                self.job.checkpoints_uri, self.scratch, self._written, self.job.require_folder
            )
        self.feed.begin(
            batches(
                self.dataset,
                self.plan,
                self.rank,
                first=first,
                last=self.job.steps,
                processes=self.job.loader_processes,
                pin_memory=self.device.type == "cuda",
            )
        )
        self.phase.set(TRAINING)
        saved = started = time.monotonic()
        warm, timed_out = started, 0.0
        batch: Batch | None = None
        read = True
        for step in range(first, self.job.steps):
            fresh = self.feed.next()
            if read:
                reason, save_now = self._agreed()
                if fresh is None or reason is not None:
                    return {}, reason
                if save_now and step > first:
                    self._save(step)
                    saved = time.monotonic()
            # who has no more takes part with the last batch, until the others know
            batch = fresh or batch
            assert batch is not None
            rate = self.task.learning_rate(step, self.job.steps)
            sums = self._step(ranks, batch, step, rate)
            if step == first:
                self.feed.waited = 0.0
            self.readings.unread.append(Unread(step, rate, self.feed.waited, sums))
            read = step == first or self.readings.due(step + 1) or self._validates(step + 1)
            if not read:
                continue
            if reason := self._read():
                return {}, reason
            if step == first:
                warm, timed_out = time.monotonic(), 0.0
            if self._validates(step + 1):
                timed_out += self._validate(step + 1)
            if self.log is not None:
                # after the last step the network itself is written
                due = time.monotonic() - saved >= self.config.checkpoint_seconds
                if due and step + 1 < self.job.steps:
                    self._save(step + 1)
                    saved = time.monotonic()
        steps_timed = max(self.job.steps - first - 1, 0)
        seconds = time.monotonic() - warm - timed_out
        losses = self.readings
        training: dict[str, Any] = {
            "steps": self.job.steps,
            "loss": self.log.recent_loss(losses.loss) if self.log else losses.loss,
            "seconds": time.monotonic() - started,
            "images_per_second": steps_timed * self.config.batch_size / seconds if seconds else 0.0,
            "loader_wait": self.feed.waited / seconds if seconds else 0.0,
            "skipped": losses.skipped,
            **{name: value / self.job.steps for name, value in losses.watched.items()},
            **self.validation,
        }
        if self.config.elastic:
            training["workers"] = self.workers
        chosen, score = self.best
        if self.task.choose_by is not None and chosen:
            training |= {self.task.choose_by: score, "chosen_step": chosen}
        if self.log is not None and self.writer is not None:
            if 0 < chosen < self.job.steps:
                if not self.writer.wait(_LAST_WRITE_SECONDS):
                    why = self.writer.failure or "it is still being written"
                    raise CannotRunError(
                        f"{self.job.stage}: the best network cannot be read again: {why}"
                    )
                state = load_best(self.job.checkpoints_uri, chosen)
                self.module.network.load_state_dict(state)
            self.writer.close()
            self.job.require_folder()
            self.task.save(self.job.model_uri, self.module.network, training)
        dist.barrier()
        # on each node: the first worker may have been on another one before
        forget_local(self.job.checkpoints_uri, self.scratch)
        return training, None

    def _validates(self, done: int) -> bool:
        every = self.plan.steps_per_epoch
        return self.task.validation is not None and self.task.validates(done, self.job.steps, every)

    def _read(self) -> CannotRunError | None:
        """Read the losses; returns why it ends, perhaps that a worker took part without images."""
        if self.readings.every > 1 and (reason := self._shared_problem()):
            return reason
        return self.readings.read(self.module.watched())

    def _note(self, read: Unread, loss: float, watched: Mapping[str, float]) -> None:
        if self.log is None:
            return
        now, step = time.monotonic(), read.step + 1
        self.log.step(step, loss, read.rate, read.waited, watched)
        if now - self.reported >= _REPORT_SECONDS or step == self.job.steps:
            self.reported = now
            trouble = self.writer.failure if self.writer is not None else None
            self.reporter.update.remote(step, loss, trouble or "")

    def _step(self, module: nn.Module, batch: Batch, step: int, rate: float) -> Tensor:
        """One update; returns sums over all workers, on the device: [1 + what is watched], the loss
        first.

        Not finite: the update is left out.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        # dropout depends on the position only: the same in a resumed training
        torch.manual_seed(sample_seed(self.task.seed, step, str(self.rank)))
        images = batch.images.to(self.device, non_blocking=True)
        targets = batch.targets.to(self.device, non_blocking=True)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad(set_to_none=True)
        amp = self.config.amp and self.device.type == "cuda"
        passes = self.job.passes
        totals = {"loss": torch.zeros((), device=self.device)}
        for number, (part, aims) in enumerate(
            zip(images.chunk(passes), targets.chunk(passes), strict=True), 1
        ):
            with gradients_stay(module, number < passes):
                with torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp):
                    loss = module(part, aims) / passes
                loss.backward()
            totals["loss"] += loss.detach().float()
            for name, value in self.module.watched().items():
                totals[name] = totals.get(name, 0.0) + value.detach().float() / passes
        sums = total(torch.stack(list(totals.values())))
        if self.config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        step_if(torch.isfinite(sums[0]), self.optimizer, wait=self.readings.every == 1)
        return sums

    def _validate(self, step: int) -> float:
        """Score the network on held-out images, a share on every worker; returns the seconds."""
        validation, started = self.task.validation, time.monotonic()
        if validation is None:
            return 0.0
        for buffer in drifting_buffers(self.module):
            # plain norms have seen other images on every worker; the first one's are kept
            dist.broadcast(buffer, src=0)
        self.module.eval()

        def tell(done: int, total: int) -> None:
            self.phase.set(SCORING, done, total)

        share = validation.measure(self.module.network, self.device, self.rank, self.world, tell)
        self.module.train()
        shares: list[Any] = [None] * self.world
        dist.all_gather_object(shares, share)
        self.phase.set(TRAINING)
        self.validation = validation.metrics(shares)
        score = self.validation.get(self.task.choose_by or "", -math.inf)
        if score > self.best[1]:
            self.best = (step, score)
            if self.writer is not None:
                self.writer.save_best(step, self.module.network.state_dict())
        seconds = time.monotonic() - started
        if self.log is not None and self.validation:
            epoch = step // self.plan.steps_per_epoch
            self.log.validation(step, epoch, self.validation, seconds)
        return seconds

    def _shared_problem(self) -> CannotRunError | None:
        return first_problem(self.feed.problem, self.world, self.device)

    def _agreed(self) -> tuple[CannotRunError | None, bool]:
        """The first worker's problem, and whether all save now: the driver asked one of them."""
        known = torch.tensor([float(self.feed.problem is not None), float(self.phase.asked)])
        trouble, asked = largest(known.to(self.device)).tolist()
        # for all of them: one that hears of the request later does not answer it again
        save, self.answered = asked > self.answered, int(asked)
        return self._shared_problem() if trouble else None, save

    def _save(self, step: int) -> None:
        if self.writer is None:
            return
        content = {
            "fingerprint": self.job.fingerprint,
            "step": step,
            "skipped": self.readings.skipped,
            "watched": self.readings.watched,
            "recent": self.log.recent if self.log is not None else [],
            "validation": self.validation,
            "best": self.best,
            "workers": self.workers,
            "network": self.module.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.writer.save(step, content)

    def _written(self, event: str, **about: Any) -> None:
        assert self.log is not None
        self.log.event(event, **about)
        if event == "checkpoint":
            self.reporter.saved.remote(about["step"])

    def _resume(self) -> int:
        """Load the newest checkpoint, chosen by the first worker; returns the step to go on at."""
        chosen: list[str | None] = [None]
        if self.rank == 0:
            job = self.job
            chosen = [newest(job.checkpoints_uri, self.scratch, job.fingerprint)]
        dist.broadcast_object_list(chosen, src=0)
        if chosen[0] is None:
            return 0
        content = load_checkpoint(chosen[0])
        if content["fingerprint"] != self.job.fingerprint:
            return 0
        self.module.network.load_state_dict(content["network"])
        for group in content["optimizer"]["param_groups"]:  # of a version before
            group["fused"] = self.optimizer.defaults["fused"]
        self.optimizer.load_state_dict(content["optimizer"])
        self.readings.skipped = int(content["skipped"])
        self.readings.watched = dict(content.get("watched", {}))
        self.recent = list(content.get("recent", []))
        self.validation = dict(content.get("validation", {}))
        self.best = tuple(content.get("best", self.best))
        step = int(content["step"])
        self.workers = [list(pair) for pair in content.get("workers", self.workers)]
        if self.workers[-1][1] != self.world:
            self.workers.append([step, self.world])
        return step
