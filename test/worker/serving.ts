/**
 * A worker's public port without a port.
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { WorkerConfig } from "../../src/config.ts"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"
import * as OnClose from "../../src/session/OnClose.ts"
import * as Session from "../../src/session/Session.ts"
import * as SessionJournal from "../../src/session/SessionJournal.ts"
import * as SessionSlot from "../../src/session/SessionSlot.ts"
import type * as Handler from "../../src/worker/Handler.ts"
import * as Refusals from "../../src/worker/Refusals.ts"
import * as RequestAuth from "../../src/worker/RequestAuth.ts"
import * as WorkerServer from "../../src/worker/WorkerServer.ts"

/** Settings of a worker that nobody else can reach. */
export const config = WorkerConfig.of({
  id: 1,
  masterToken: Redacted.make("the-token"),
  reportAddresses: ["http://autoscaler"],
  url: "http://worker",
  port: 3000,
  httpPort: 3001,
  controlPort: 18999,
  tls: Option.none(),
  signaturePolicy: "off",
  healthUrl: Option.none(),
  maxSessions: 1,
  maxBodyBytes: 2 ** 20,
  onCloseAllowPrivate: false,
  journalDirectory: Option.none()
})

/** Serves these handlers; `write` is what becomes of files that the worker writes. */
export const serving = Effect.fnUntraced(function* (
  handlers: ReadonlyArray<Handler.Handler>,
  write: FileSystem.FileSystem["writeFileString"] = () => Effect.void,
  settings: Partial<WorkerConfig["Service"]> = {}
) {
  const services = yield* Layer.build(
    Session.layer.pipe(
      Layer.provide(Layer.succeed(OnClose.OnClose, { deliver: () => Effect.void })),
      Layer.provide([SessionSlot.layerCapacity(1), SessionJournal.layerMemory]),
      Layer.provideMerge(Layer.mergeAll(MetricsReporter.layerTest, RequestAuth.layerOff)),
      Layer.provideMerge(FileSystem.layerNoop({ writeFileString: write })),
      Layer.provideMerge(Layer.succeed(WorkerConfig, { ...config, ...settings }))
    )
  )
  const app = yield* Effect.acquireRelease(
    Effect.sync(() =>
      HttpRouter.toWebHandler(
        Layer.merge(WorkerServer.routes(handlers), Refusals.layer).pipe(Layer.provide(Layer.succeedContext(services))),
        { disableLogger: true }
      )
    ),
    ({ dispose }) => Effect.promise(dispose)
  )
  const send = (path: string, body: unknown, init: RequestInit = {}) =>
    Effect.promise((signal) =>
      app.handler(new Request(`http://worker${path}`, { method: "POST", body: JSON.stringify(body), signal, ...init }))
    )
  const post = (path: string, body: unknown, headers: Record<string, string> = {}) =>
    Effect.gen(function* () {
      const response = yield* send(path, body, { headers })
      return { status: response.status, body: (yield* Effect.promise(() => response.json())) as Record<string, unknown> }
    })
  const reports = yield* Effect.provide(MetricsReporter.RecordedReports, services)
  return { post, reports, send, services }
})
