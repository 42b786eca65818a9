/**
 * How many workers an endpoint wants: the autoscaler's rule as a pure function of load, workers and parameters (wire section 10).
 */
import type { EndpointParameters } from "../protocol/RouteApi.ts"

/** Parameters for one session = one worker, and workers that go as soon as they are not needed. */
export const defaults: EndpointParameters = {
  max_workers: 3,
  min_load: 0,
  target_util: 1,
  max_queue_time: 0,
  target_queue_time: 0,
  inactivity_timeout: 2,
  cold_workers: 0
}

/** A running worker, in the eyes of the rule. `load` is workload under way or on its way to it; `idleFor` is seconds. */
export interface ActiveWorker {
  readonly id: number
  readonly perf: number
  readonly load: number
  /** Seconds without load; 0 for a worker that has load or is not ready yet. */
  readonly idleFor: number
}

/** The load that workers serve before they have said so themselves. */
export const defaultPerf = 100

/**
 * The capacity wanted, in workload a second. Load under way counts in full, and so do queued requests unless
 * `target_queue_time` gives them more than a second to drain; `target_util` leaves headroom; `min_load` is the floor.
 */
const wantedCapacity = (parameters: EndpointParameters, load: { readonly working: number; readonly queued: number }) =>
  Math.max(parameters.min_load, (load.working + load.queued / Math.max(1, parameters.target_queue_time)) / parameters.target_util)

/** What to do now: how many workers to start, and which to stop. */
export interface Decision {
  readonly start: number
  readonly stop: ReadonlyArray<number>
}

export const decide = (parameters: EndpointParameters, queued: number, workers: ReadonlyArray<ActiveWorker>): Decision => {
  const working = workers.reduce((sum, worker) => sum + worker.load, 0)
  const perf = workers.length === 0 ? defaultPerf : workers.reduce((sum, worker) => sum + worker.perf, 0) / workers.length
  // A tiny slack, so that sums of fractional loads do not ask for one worker too many.
  const wanted = Math.min(parameters.max_workers, Math.ceil(wantedCapacity(parameters, { working, queued }) / perf - 1e-9))
  if (wanted >= workers.length) return { start: wanted - workers.length, stop: [] }
  const idle = workers.filter((worker) => worker.load === 0 && worker.idleFor >= parameters.inactivity_timeout)
  return {
    start: 0,
    stop: idle
      .sort((a, b) => b.idleFor - a.idleFor)
      .slice(0, workers.length - wanted)
      .map((worker) => worker.id)
  }
}

/** Whether a worker may be given another request: its queue, in seconds, is not longer than allowed. */
export const hasRoom = (parameters: EndpointParameters, worker: Pick<ActiveWorker, "load" | "perf">) =>
  worker.load / worker.perf <= parameters.max_queue_time
