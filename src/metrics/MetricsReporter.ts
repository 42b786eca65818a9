/**
 * Tells the autoscaler about this worker's load.
 *
 * The autoscaler routes requests, adds and removes workers by these reports alone. A change goes out at once, the following
 * ones at most one a second, and a heartbeat every 10 s. Nothing is lost between reports: sums and deleted requests whose
 * report did not arrive go into the next one (wire section 8).
 */

import { statfsSync } from "node:fs"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { type ReportIdentity, WorkerConfig } from "../config.ts"
import {
  type DeletedRequest,
  type DeleteRequests,
  protocolVersion,
  type RequestStatus,
  type WorkerStatus
} from "../protocol/Report.ts"
import * as Seconds from "../Seconds.ts"
import * as LoadBook from "./LoadBook.ts"

/** What a caller says of its work. `workload` is in workload units. */
export type Work = Omit<LoadBook.Work, "enteredQueueAt" | "startedAt">

export class MetricsReporter extends Context.Service<
  MetricsReporter,
  {
    /**
     * Books work for as long as the scope is open. How the scope closes is how the work ended: a success, an interruption
     * (the client went away) or a failure. The effect that it gives says that the work's turn has come, where it had to wait.
     */
    readonly work: (work: Work) => Effect.Effect<Effect.Effect<void>, never, Scope.Scope>
    /** Books work that was refused for want of room. */
    readonly reject: (work: Work) => Effect.Effect<void>
    /**
     * Has the autoscaler told that it may forget a request, and runs `told` once it has been. Other work than sessions needs
     * none of this: `work` and `reject` see to it. A session's deletion has to outlive the process, so the session does.
     */
    readonly forget: (request: DeletedRequest, told: Effect.Effect<void>) => Effect.Effect<void>
    /** Seconds that a request would wait for the requests before it, sessions and what is in them not counted. */
    readonly queueTime: Effect.Effect<number>
    /** The worker takes requests: `loadtime` seconds after its start, at `maxPerf` workload a second. An errored worker stays errored. */
    readonly ready: (figures: { readonly loadtime: number; readonly maxPerf: number }) => Effect.Effect<void>
    /** The worker is broken, for this reason, until it is started anew. The first reason stands. */
    readonly errored: (reason: string) => Effect.Effect<void>
    /** Waits until the autoscaler has been told of everything up to now. */
    readonly told: Effect.Effect<void>
  }
>()("null-pyworker/MetricsReporter") {}

/** A report that no address of the autoscaler took. */
export class ReportFailed extends Schema.TaggedError<ReportFailed>()("ReportFailed", {
  route: Schema.String,
  reason: Schema.String
}) {}

/** Where reports go. */
interface Transport {
  readonly status: (report: WorkerStatus) => Effect.Effect<void, ReportFailed>
  readonly deletes: (requests: ReadonlyArray<DeletedRequest>) => Effect.Effect<void, ReportFailed>
}

const spacing = Duration.seconds(1)
const heartbeat = Duration.seconds(10)
/** Seconds between two reports that did not arrive, at most. */
const longestPause = 30
/** Deleted requests that go into one report. */
const batch = 1000
/** Workload a second that a worker is taken to serve before it knows: a queue of any length is too long for it. */
const slowest = 1e-5
/** How long a report may still take when the worker stops. */
const farewell = Duration.millis(1500)

const make = Effect.fnUntraced(function* (identity: ReportIdentity, transport: Transport) {
  const book = LoadBook.empty()
  const disk = yield* diskUsage
  const condition = { loadtime: 0, maxPerf: 0, error: "" }
  const statusChanged = yield* Latch.make(false)
  const deletesWaiting = yield* Latch.make(false)
  const stopping = yield* Latch.make(false)

  const told = yield* Latch.make(true)

  const changed = Effect.suspend(() => {
    told.closeUnsafe()
    return statusChanged.open
  })

  const sendStatus = Effect.suspend(() => {
    const sums = LoadBook.takeSums(book)
    const usage = disk.read()
    const report: WorkerStatus = {
      id: identity.id,
      mtoken: Redacted.value(identity.masterToken),
      version: protocolVersion,
      loadtime: condition.loadtime,
      new_load: Math.max(sums.received - sums.cancelled, 0),
      cur_load: LoadBook.currentLoad(book),
      rej_load: sums.rejected,
      cur_perf: sums.served,
      max_perf: condition.maxPerf,
      error_msg: condition.error,
      num_requests_working: book.working.size,
      num_requests_recieved: book.requestsReceived,
      additional_disk_usage: usage.additional,
      disk_usage: usage.total,
      working_request_idxs: Array.from(book.working, (work) => work.requestIdx).filter((idx) => idx !== undefined),
      cur_capacity: 0,
      max_capacity: 0,
      url: identity.url
    }
    return transport.status(report).pipe(
      Effect.onExit((exit) => Effect.sync(() => (Exit.isSuccess(exit) ? disk.commit(usage) : LoadBook.giveBack(book, sums)))),
      Effect.andThen(Effect.suspend(() => (Latch.isOpen(statusChanged) ? Effect.void : told.open)))
    )
  })

  // All that wait now, batch by batch; what comes meanwhile waits for the next time. Taken out first and put back if need be,
  // because the oldest may have to be given up meanwhile.
  const sendDeletes = Effect.gen(function* () {
    for (let waiting = book.deleting.length; waiting > 0; waiting -= batch) {
      const deletions = book.deleting.splice(0, Math.min(batch, waiting))
      yield* transport
        .deletes(deletions.map(({ request }) => request))
        .pipe(Effect.onError(() => Effect.sync(() => book.deleting.unshift(...deletions))))
      yield* Effect.forEach(deletions, ({ told }) => told, { discard: true })
    }
  })

  const forget = (deletion: LoadBook.Deletion) =>
    Effect.suspend(() => {
      const givenUp = LoadBook.forget(book, deletion)
      return givenUp.length === 0 ? deletesWaiting.open : Effect.andThen(giveUp(givenUp), deletesWaiting.open)
    })

  const giveUp = Effect.fnUntraced(function* (deletions: ReadonlyArray<LoadBook.Deletion>) {
    yield* Effect.logError("deletions given up: too many wait", { oldest: deletions.length })
    yield* Effect.forEach(deletions, ({ told }) => told, { discard: true })
  })

  const forgetRequest = (work: LoadBook.Work, status: RequestStatus, now: number) => {
    const request = LoadBook.deletion(work, status, now)
    return request === null ? Effect.void : forget({ request, told: Effect.void })
  }

  const finish = (work: LoadBook.Work, status: ReturnType<typeof outcome>) => {
    LoadBook.finish(book, work, status)
    if (work.kind === "session") return changed
    return Effect.andThen(
      changed,
      Effect.flatMap(Seconds.epoch, (now) => forgetRequest(work, status, now))
    )
  }

  // Doubled with every failure, and never twice the same: ten thousand workers must not come back in step.
  const pauseAfter = (failures: number) =>
    failures === 0
      ? Effect.succeed(spacing)
      : Effect.map(Random.nextBetween(0.5, 1), (share) => Duration.seconds(share * Math.min(2 ** failures, longestPause)))

  // Sends when something has changed, and every `heartbeat` when nothing has. Ends after one last report once the worker stops.
  const reportWhen = Effect.fnUntraced(function* (
    changed: Latch.Latch,
    send: Effect.Effect<void, ReportFailed>,
    heartbeat: Duration.Duration
  ) {
    const unlessStopping = Effect.raceFirst(stopping.await)
    // A worker that is ready within the first second says so in its first report, instead of a second after it.
    let patience = spacing
    let earliest = 0
    let failures = 0
    while (true) {
      yield* changed.await.pipe(unlessStopping, Effect.timeoutOption(patience))
      patience = heartbeat
      const early = earliest - (yield* Seconds.monotonic)
      if (early > 0) yield* Effect.sleep(Duration.seconds(early)).pipe(unlessStopping)
      const last = Latch.isOpen(stopping)
      yield* changed.close
      failures = yield* send.pipe(
        Effect.raceFirst(stopping.await.pipe(Effect.delay(farewell), Effect.andThen(stoppedBeforeSent))),
        Effect.as(0),
        Effect.catch(({ route, reason }) =>
          Effect.logWarning("report not delivered", { route, reason }).pipe(Effect.andThen(changed.open), Effect.as(failures + 1))
        )
      )
      if (last) return
      earliest = (yield* Seconds.monotonic) + Duration.toSeconds(yield* pauseAfter(failures))
    }
  })

  const loops = [
    yield* Effect.forkScoped(reportWhen(statusChanged, sendStatus, heartbeat)),
    yield* Effect.forkScoped(reportWhen(deletesWaiting, sendDeletes, Duration.infinity))
  ]
  // Runs before the loops' own interruption: what is booked by now is still sent.
  yield* Effect.addFinalizer(() => Effect.andThen(stopping.open, Fiber.awaitAll(loops)))

  return MetricsReporter.of({
    work: Effect.fnUntraced(function* (work) {
      const now = yield* Seconds.epoch
      const entry: LoadBook.Work = { ...work, enteredQueueAt: now, startedAt: now }
      yield* Scope.addFinalizerExit(yield* Effect.scope, (exit) => finish(entry, outcome(exit)))
      LoadBook.begin(book, entry)
      yield* changed
      return Effect.map(Seconds.epoch, (turn) => {
        entry.startedAt = turn
      })
    }),
    reject: Effect.fnUntraced(function* (work) {
      const entry: LoadBook.Work = { ...work, enteredQueueAt: yield* Seconds.epoch, startedAt: 0 }
      LoadBook.reject(book, entry)
      yield* changed
      if (work.kind !== "session") yield* forgetRequest(entry, "Rejected", 0)
    }),
    forget: (request, told) => forget({ request, told }),
    queueTime: Effect.sync(() => LoadBook.queuedLoad(book) / Math.max(condition.maxPerf, slowest)),
    ready: ({ loadtime, maxPerf }) =>
      Effect.suspend(() => {
        if (condition.error !== "") return Effect.void
        // A loadtime of 0 says "not loaded" on the wire, so a worker that is ready at once says a millisecond.
        Object.assign(condition, { loadtime: Math.max(loadtime, 0.001), maxPerf })
        return changed
      }),
    errored: (reason) =>
      Effect.suspend(() => {
        if (condition.error !== "") return Effect.void
        condition.error = reason
        return changed
      }),
    told: told.await
  })
})

const outcome = (exit: Exit.Exit<unknown, unknown>) =>
  Exit.isSuccess(exit) ? "Success" : Exit.hasInterrupts(exit) ? "Cancelled" : "Error"

const stoppedBeforeSent = Effect.fail(new ReportFailed({ route: "any", reason: "the worker stopped first" }))

const bytesPerGiB = 2 ** 30

// The platform bills disk by these figures: how much of `/` is used, and the change since the last report that arrived.
const diskUsage = Effect.sync(() => {
  const used = () => {
    const { blocks, bfree, bsize } = statfsSync("/")
    return ((blocks - bfree) * bsize) / bytesPerGiB
  }
  let reported = used()
  return {
    read: () => {
      const total = used()
      return { total, additional: total - reported }
    },
    commit: (usage: { readonly total: number }) => {
      reported = usage.total
    }
  }
})

const attempts = 3
const attemptTimeout = Duration.seconds(10)
const attemptSpacing = Duration.seconds(2)

/** An address that speaks the rest of the protocol but takes no deleted requests. */
const deaf = "https://cloud.vast.ai/api/v0"

const httpTransport = Effect.fnUntraced(function* (identity: ReportIdentity) {
  const client = HttpClient.filterStatusOk(yield* HttpClient.HttpClient)

  const post = (addresses: ReadonlyArray<string>, route: string, body: unknown): Effect.Effect<void, ReportFailed> => {
    const attempt = (address: string) =>
      HttpClientRequest.post(`${address}${route}`).pipe(
        HttpClientRequest.bodyJsonUnsafe(body),
        client.execute,
        // The answer says nothing, but unread it would keep the connection.
        Effect.flatMap((response) => response.arrayBuffer),
        Effect.timeout(attemptTimeout),
        Effect.mapError((error) => new ReportFailed({ route, reason: error.message })),
        Effect.retry({ times: attempts - 1, schedule: Schedule.spaced(attemptSpacing) })
      )
    return Effect.asVoid(Effect.firstSuccessOf(addresses.map(attempt)))
  }

  const transport: Transport = {
    status: (report) => post(identity.reportAddresses, "/worker_status/", report),
    deletes: (requests) => {
      const addresses = identity.reportAddresses.filter((address) => address !== deaf)
      if (addresses.length === 0) return Effect.void
      const body: typeof DeleteRequests.Type = { worker_id: identity.id, mtoken: Redacted.value(identity.masterToken), requests }
      return post(addresses, "/delete_requests/", body)
    }
  }
  return transport
})

/** Reports to the autoscaler as `identity`. */
export const layerIdentity = (identity: ReportIdentity): Layer.Layer<MetricsReporter, never, HttpClient.HttpClient> =>
  Layer.effect(
    MetricsReporter,
    Effect.flatMap(httpTransport(identity), (transport) => make(identity, transport))
  )

/** Reports to the autoscaler as the configured worker. */
export const layer: Layer.Layer<MetricsReporter, never, HttpClient.HttpClient | WorkerConfig> = Layer.unwrap(
  Effect.map(WorkerConfig, layerIdentity)
)

/** What a worker under test has reported. */
export class RecordedReports extends Context.Service<
  RecordedReports,
  { readonly statuses: ReadonlyArray<WorkerStatus>; readonly deleted: ReadonlyArray<DeletedRequest> }
>()("null-pyworker/MetricsReporter/RecordedReports") {}

/** Books and paces like the real one, and records its reports instead of sending them. */
export const layerTest: Layer.Layer<MetricsReporter | RecordedReports> = Layer.effectContext(
  Effect.gen(function* () {
    const statuses: Array<WorkerStatus> = []
    const deleted: Array<DeletedRequest> = []
    const reporter = yield* make(
      { id: 1, masterToken: Redacted.make(""), reportAddresses: ["http://127.0.0.1"], url: "http://127.0.0.1" },
      {
        status: (report) => Effect.sync(() => void statuses.push(report)),
        deletes: (requests) => Effect.sync(() => void deleted.push(...requests))
      }
    )
    return Context.make(MetricsReporter, reporter).pipe(Context.add(RecordedReports, { statuses, deleted }))
  })
)
