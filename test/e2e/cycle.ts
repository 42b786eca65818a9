/**
 * Counts what one session costs, from its create to its end: fibers, and bytes allocated. Without sockets, because what Node
 * does is not ours, and without compiled code, which allocates as it sees fit. Run by `footprint.test.ts`.
 */
import { getHeapStatistics } from "node:v8"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import { WorkerConfig } from "../../src/config.ts"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"
import * as OnClose from "../../src/session/OnClose.ts"
import * as Session from "../../src/session/Session.ts"
import * as SessionJournal from "../../src/session/SessionJournal.ts"
import * as SessionSlot from "../../src/session/SessionSlot.ts"
import type { JsonRoute } from "../../src/worker/JsonRoute.ts"
import * as Listener from "../../src/worker/Listener.ts"
import * as RequestAuth from "../../src/worker/RequestAuth.ts"
import * as WorkerServer from "../../src/worker/WorkerServer.ts"
import { config } from "../worker/serving.ts"

const routes = new Map<string, JsonRoute["answer"]>()
const worker = WorkerServer.layer([]).pipe(
  Layer.provide(
    Layer.succeed(Listener.Listener, {
      listen: (_app, _address, direct) =>
        Effect.sync(() => {
          for (const { answer, path } of direct) routes.set(path, answer)
        })
    })
  ),
  Layer.provide(Session.layer),
  Layer.provide(Layer.succeed(OnClose.OnClose, { deliver: () => Effect.void })),
  Layer.provide([SessionSlot.layerCapacity(1), SessionJournal.layerMemory]),
  Layer.provide(Layer.mergeAll(MetricsReporter.layerTest, RequestAuth.layerOff)),
  Layer.provide(FileSystem.layerNoop({})),
  Layer.provide(Layer.succeed(WorkerConfig, config))
)

const ask = (path: string, body: unknown) =>
  (routes.get(path)?.(JSON.stringify(body)) ?? Effect.die(path)).pipe(
    Effect.map((answer) => answer.body),
    Effect.provideService(References.MinimumLogLevel, "None")
  )

const cycle = (request_idx: number) => {
  const auth = { url: "http://worker", signature: "s", cost: 100, request_idx }
  const { session_id } = Effect.runSync(ask("/session/create", { auth_data: auth, payload: {} }))
  Effect.runSync(ask("/session/end", { session_id, session_auth: auth }))
}

const fibersSoFar = () => Effect.runFork(Effect.void).id

const cycles = 200
await Effect.runPromise(
  Effect.sync(() => {
    for (let idx = 0; idx < cycles; idx++) cycle(idx)
    const [fibers, bytes] = [fibersSoFar(), getHeapStatistics().used_heap_size]
    for (let idx = 0; idx < cycles; idx++) cycle(cycles + idx)
    console.log(
      JSON.stringify({
        bytes: (getHeapStatistics().used_heap_size - bytes) / cycles,
        fibers: (fibersSoFar() - 1 - fibers) / cycles
      })
    )
  }).pipe(Effect.provide(worker))
)
process.exit(0)
