/**
 * The embedded autoscaler: queues and routes requests, believes what workers report, and starts and stops them by load.
 *
 * Everything that it knows is here, in memory, for as long as it runs. A request waits in the queue until a worker has room;
 * the worker is then held for it until the client asks again and gets the signed route (wire sections 3, 8 and 9).
 */
import { generateKeyPair, randomBytes, sign } from "node:crypto"
import { promisify } from "node:util"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { type AuthData, signedMessage } from "../protocol/AuthData.ts"
import type { DeletedRequest, RequestStatus, WorkerStatus } from "../protocol/Report.ts"
import type { EndpointParameters, Queued, RouteRequest, WorkerInfo } from "../protocol/RouteApi.ts"
import * as Seconds from "../Seconds.ts"
import { Fleet } from "./Fleet.ts"
import * as Scaling from "./Scaling.ts"

/** The key or token is not this account's. Becomes 401. */
export class Forbidden extends Schema.TaggedError<Forbidden>()("Forbidden", {}) {}

/** No endpoint of this name or number. Becomes 404. */
export class UnknownEndpoint extends Schema.TaggedError<UnknownEndpoint>()("UnknownEndpoint", { endpoint: Schema.String }) {}

/** What the control plane runs: one account with one endpoint. */
export interface Settings {
  readonly endpoint: { readonly id: number; readonly name: string; readonly apiKey: string }
  readonly apiKey: string
  /** The token of workers that are started elsewhere and join. */
  readonly masterToken: Redacted.Redacted
  readonly parameters: EndpointParameters
  /** Where workers that it starts report. */
  readonly reportAddress: string
}

/** What has come to pass since the start. */
export interface History {
  readonly workersStarted: number
  /** How each request that workers reported as done ended. */
  readonly outcomes: ReadonlyMap<number, RequestStatus>
  readonly workers: ReadonlyArray<WorkerInfo>
}

export class Autoscaler extends Context.Service<
  Autoscaler,
  {
    /** The key that signatures are verified with, in PEM. */
    readonly publicKey: string
    /** A place in the queue, or a signed route to a worker. */
    readonly route: (
      request: typeof RouteRequest.Type
    ) => Effect.Effect<AuthData | typeof Queued.Type, Forbidden | UnknownEndpoint>
    /** A worker's report. Workers that were started elsewhere join by it, if they hold the master token. */
    readonly status: (report: WorkerStatus) => Effect.Effect<void, Forbidden>
    /** Requests that a worker is done with. */
    readonly deleteRequests: (
      workerId: number,
      token: string,
      requests: ReadonlyArray<DeletedRequest>
    ) => Effect.Effect<void, Forbidden>
    /** The workers of the endpoint. */
    readonly workers: Effect.Effect<ReadonlyArray<WorkerInfo>>
    readonly history: Effect.Effect<History>
    /** Starts no more workers, and stops those that it started. */
    readonly shutdown: Effect.Effect<void>
  }
>()("null-pyworker/local/Autoscaler") {}

/** A client's request. It is queued while it has no worker. Times are monotonic seconds. */
interface Request {
  readonly idx: number
  readonly cost: number
  readonly replayTimeout: number
  askedAt: number
  worker: Worker | undefined
}

/** Times are monotonic seconds, but for the two that clients are told. */
interface Worker {
  readonly id: number
  /** Closing it stops the worker, if we started it ourselves. */
  readonly scope: Scope.Closeable | undefined
  readonly startedAtEpoch: number
  state: "loading" | "ready" | "stopping"
  loadedAtEpoch: number
  reportedAt: number
  idleSince: number
  report: WorkerStatus | undefined
}

/** A worker that has said nothing for this long, three heartbeats, is gone. */
const silence = 30
/** A worker is held this long for a client that has not asked again: more than any client's poll interval. */
const heldForClient = 6
/** The rule is looked at when something changes, and this often for what only time changes. */
const tick = Duration.millis(500)
/** Seconds to wait after a worker that failed; doubled for each that follows, so that a broken worker is not started in a loop. */
const failurePause = 1
const longestFailurePause = 30

const make = Effect.fnUntraced(function* (settings: Settings) {
  const { endpoint, parameters } = settings
  const fleet = yield* Fleet
  const scope = yield* Effect.scope
  const keys = yield* Effect.promise(() => promisify(generateKeyPair)("rsa", { modulusLength: 2048 }))

  const ownToken = Redacted.make(randomBytes(16).toString("hex"))

  const workers = new Map<number, Worker>()
  /** Numbers of stopped workers, to be started again before new ones are made. */
  const cold: Array<number> = []
  const requests = new Map<number, Request>()
  const outcomes = new Map<number, RequestStatus>()
  const changed = yield* Latch.make(true)
  let lastWorker = 0
  let lastRequest = 0
  let reqnum = 0
  let workersStarted = 0
  let failures = 0
  let startNotBefore = 0

  while (cold.length < parameters.cold_workers) cold.push(++lastWorker)

  /** Load that a worker has, or that is on its way to it and not in its reports yet. */
  const loadOf = (worker: Worker) => {
    let load = worker.report?.cur_load ?? 0
    const reported = new Set(worker.report?.working_request_idxs)
    for (const request of requests.values()) {
      if (request.worker === worker && !reported.has(request.idx)) load += request.cost
    }
    return load
  }
  const perfOf = (worker: Worker) => worker.report?.max_perf || Scaling.defaultPerf

  const isQueued = (request: Request, now: number) => request.worker === undefined && now - request.askedAt <= heldForClient

  const assign = (now: number) => {
    for (const request of requests.values()) {
      const silent = now - request.askedAt
      const taken = request.worker?.report?.working_request_idxs.includes(request.idx) ?? false
      if (!taken && silent > request.replayTimeout) requests.delete(request.idx)
      else if (!taken && silent > heldForClient) request.worker = undefined
    }
    for (const request of requests.values()) {
      if (!isQueued(request, now)) continue
      for (const worker of workers.values()) {
        if (worker.state !== "ready") continue
        if (!Scaling.hasRoom(parameters, { load: loadOf(worker), perf: perfOf(worker) })) continue
        request.worker = worker
        break
      }
    }
  }

  const forget = (worker: Worker) => {
    workers.delete(worker.id)
    for (const request of requests.values()) if (request.worker === worker) request.worker = undefined
  }

  // Takes a worker out of the routes at once; its process, if it is ours, gets the time it needs to stop.
  const stop = Effect.fnUntraced(function* (worker: Worker, reason: string, options: { readonly reusable: boolean }) {
    if (worker.state === "stopping") return
    worker.state = "stopping"
    yield* Effect.logInfo("worker stops", { worker: worker.id, reason })
    yield* Effect.gen(function* () {
      if (worker.scope !== undefined) yield* Scope.close(worker.scope, Exit.void)
      forget(worker)
      if (options.reusable && workers.size + cold.length < parameters.cold_workers) cold.push(worker.id)
      yield* Effect.logInfo("worker stopped", { worker: worker.id })
      yield* changed.open
    }).pipe(Effect.forkIn(scope))
  })

  const fail = Effect.fnUntraced(function* (worker: Worker, reason: string) {
    // What ends because it was stopped has not failed.
    if (worker.state === "stopping") return
    if (worker.scope === undefined) return yield* stop(worker, reason, { reusable: false })
    startNotBefore = (yield* Seconds.monotonic) + Math.min(failurePause * 2 ** failures, longestFailurePause)
    failures += 1
    yield* stop(worker, reason, { reusable: false })
  })

  const add = Effect.fnUntraced(function* (id: number, scope: Scope.Closeable | undefined) {
    const now = yield* Seconds.monotonic
    const worker: Worker = {
      id,
      scope,
      startedAtEpoch: yield* Seconds.epoch,
      state: "loading",
      loadedAtEpoch: 0,
      reportedAt: now,
      idleSince: now,
      report: undefined
    }
    workers.set(id, worker)
    return worker
  })

  const start = Effect.gen(function* () {
    const id = cold.shift() ?? ++lastWorker
    const workerScope = yield* Scope.make()
    const worker = yield* add(id, workerScope)
    workersStarted += 1
    yield* Effect.logInfo("worker starts", { worker: id })
    yield* fleet.start({ id, masterToken: ownToken, reportAddress: settings.reportAddress }).pipe(
      Scope.provide(workerScope),
      Effect.flatten,
      Effect.matchEffect({
        onFailure: (error) => fail(worker, error.message),
        onSuccess: (code) => fail(worker, `exited with code ${code}`)
      }),
      Effect.forkIn(scope)
    )
  })

  const scale = Effect.gen(function* () {
    const now = yield* Seconds.monotonic
    for (const worker of workers.values()) {
      if (now - worker.reportedAt > silence) yield* fail(worker, `silent for ${silence} s`)
    }
    assign(now)
    const active = Array.from(workers.values()).filter((worker) => worker.state !== "stopping")
    const queued = Array.from(requests.values()).filter((request) => isQueued(request, now))
    const decision = Scaling.decide(
      parameters,
      queued.reduce((sum, request) => sum + request.cost, 0),
      active.map((worker) => {
        const load = loadOf(worker)
        if (load > 0) worker.idleSince = now
        return {
          id: worker.id,
          perf: perfOf(worker),
          load,
          // A worker that somebody else started is not ours to stop.
          idleFor: worker.state === "ready" && load === 0 && worker.scope !== undefined ? now - worker.idleSince : 0
        }
      })
    )
    for (const id of decision.stop) {
      const worker = workers.get(id)
      if (worker !== undefined) yield* stop(worker, "idle", { reusable: true })
    }
    // A worker that is stopping still counts against the limit.
    const room = parameters.max_workers - workers.size
    if (now >= startNotBefore) {
      for (let started = 0; started < Math.min(decision.start, room); started++) yield* start
    }
  })

  const shutdown = Effect.gen(function* () {
    startNotBefore = Number.POSITIVE_INFINITY
    yield* Effect.forEach(
      Array.from(workers.values()),
      (worker) => {
        worker.state = "stopping"
        return worker.scope === undefined ? Effect.void : Scope.close(worker.scope, Exit.void)
      },
      { concurrency: "unbounded", discard: true }
    )
  })
  yield* Effect.addFinalizer(() => shutdown)

  yield* Effect.forever(
    Effect.gen(function* () {
      yield* changed.await.pipe(Effect.timeoutOption(tick))
      yield* changed.close
      yield* scale
    })
  ).pipe(Effect.forkScoped)

  const signRoute = (request: Request, worker: Worker): AuthData => {
    const url = worker.report?.url ?? ""
    reqnum += 1
    return {
      cost: request.cost,
      endpoint: endpoint.name,
      reqnum,
      request_idx: request.idx,
      signature: sign("RSA-SHA256", Buffer.from(signedMessage(url)), keys.privateKey).toString("base64"),
      url
    }
  }

  const describe = (worker: Worker): WorkerInfo => ({
    id: worker.id,
    // A ready worker is called idle by the platform, whether it has load or not.
    status: worker.state === "ready" ? "idle" : worker.state,
    cur_load: worker.report?.cur_load ?? 0,
    new_load: worker.report?.new_load ?? 0,
    cur_perf: worker.report?.cur_perf ?? 0,
    perf: worker.report?.max_perf ?? 0,
    measured_perf: worker.report?.max_perf ?? 0,
    reqs_working: worker.report?.num_requests_working ?? 0,
    loaded_at: worker.loadedAtEpoch,
    started_at: worker.startedAtEpoch
  })

  const listWorkers = () => [
    ...Array.from(workers.values(), describe),
    ...cold.map((id) => ({
      id,
      status: "stopped",
      cur_load: 0,
      new_load: 0,
      cur_perf: 0,
      perf: 0,
      measured_perf: 0,
      reqs_working: 0,
      loaded_at: 0,
      started_at: 0
    }))
  ]

  // Workers of our own have a token of this run's, so that what an earlier run left behind cannot pass for one of them.
  const authorised = (id: number, token: string) =>
    token === Redacted.value(workers.get(id)?.scope === undefined ? settings.masterToken : ownToken)
      ? Effect.void
      : new Forbidden()

  return Autoscaler.of({
    publicKey: keys.publicKey.export({ type: "spki", format: "pem" }).toString(),
    route: Effect.fnUntraced(function* (asked) {
      if (asked.api_key !== endpoint.apiKey && asked.api_key !== settings.apiKey) return yield* new Forbidden()
      if (asked.endpoint !== endpoint.name) return yield* new UnknownEndpoint({ endpoint: asked.endpoint })
      const now = yield* Seconds.monotonic
      let request = requests.get(asked.request_idx)
      if (request === undefined) {
        request = { idx: ++lastRequest, cost: asked.cost, replayTimeout: asked.replay_timeout, askedAt: now, worker: undefined }
        requests.set(request.idx, request)
      }
      request.askedAt = now
      yield* scale
      if (request.worker?.state === "ready") return signRoute(request, request.worker)
      return { request_idx: request.idx, status: "queued" }
    }),
    status: Effect.fnUntraced(function* (report) {
      yield* authorised(report.id, report.mtoken)
      let worker = workers.get(report.id)
      if (worker === undefined) {
        worker = yield* add(report.id, undefined)
        yield* Effect.logInfo("worker joins", { worker: report.id, url: report.url })
      }
      const now = yield* Seconds.monotonic
      if (worker.state === "loading" || loadOf(worker) > 0) worker.idleSince = now
      worker.reportedAt = now
      worker.report = report
      if (report.error_msg !== "") yield* fail(worker, report.error_msg)
      else if (worker.state === "loading" && report.loadtime > 0) {
        worker.state = "ready"
        worker.loadedAtEpoch = yield* Seconds.epoch
        failures = 0
        yield* Effect.logInfo("worker ready", { worker: worker.id, url: report.url })
      }
      yield* changed.open
    }),
    deleteRequests: Effect.fnUntraced(function* (workerId, token, done) {
      yield* authorised(workerId, token)
      for (const { request_idx, status } of done) {
        outcomes.set(request_idx, status)
        const request = requests.get(request_idx)
        // A rejected request is still the client's wish: it goes back to the queue, for another worker.
        if (request?.worker?.id === workerId) {
          if (status === "Rejected") request.worker = undefined
          else requests.delete(request_idx)
        }
        yield* Effect.logInfo("request done", { request_idx, status, worker: workerId })
      }
      yield* changed.open
    }),
    workers: Effect.sync(listWorkers),
    history: Effect.sync(() => ({ workersStarted, outcomes, workers: listWorkers() })),
    shutdown
  })
})

export const layer = (settings: Settings): Layer.Layer<Autoscaler, never, Fleet> => Layer.effect(Autoscaler, make(settings))
