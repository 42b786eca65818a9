import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as MetricsReporter from "./src/metrics/MetricsReporter.ts"
import * as OnClose from "./src/session/OnClose.ts"
import * as Session from "./src/session/Session.ts"
import * as SessionJournal from "./src/session/SessionJournal.ts"
import * as SessionSlot from "./src/session/SessionSlot.ts"

const client = Layer.succeed(HttpClient.HttpClient, HttpClient.make((request) => Effect.sync(() => HttpClientResponse.fromWeb(request, new Response("{}")))))
const identity = { id: 7, masterToken: Redacted.make("secret"), reportAddresses: ["http://one"] as any, url: "https://1.2.3.4:3000" }
const L = Session.layer.pipe(
  Layer.provideMerge(SessionSlot.layerCapacity(256)),
  Layer.provideMerge(OnClose.layer), Layer.provideMerge(Layer.succeed(OnClose.Outbound, null as any)),
  Layer.provideMerge(process.env.JOURNAL ? SessionJournal.layerFile(process.env.JOURNAL) : SessionJournal.layerMemory),
  Layer.provideMerge(MetricsReporter.layerIdentity(identity).pipe(Layer.provide(client)))
)
const auth = (i: number) => ({ cost: 100, endpoint: "bench", signature: "unsigned".repeat(process.env.LONG?40:1), url: "http://127.0.0.1:3000", reqnum: i, ...(process.env.NOIDX ? {} : { request_idx: i }) })
const res = { lifetime: 3600, on_close_route: null, on_close_payload: null }
const main = Effect.gen(function*() {
  const s = yield* Session.Sessions
  let n = 0; const all: number[] = []
  const cycle = Effect.gen(function*() {
    const a = auth(++n)
    const x = yield* s.open(a, res)
    const y = yield* s.find(x.id, { ...a })
    yield* s.close(y, "client")
  })
  for (let r = 0; r < Number(process.env.R ?? 20); r++) {
    const t = process.cpuUsage()
    for (let i = 0; i < 10000; i++) { yield* Effect.flatMap(Effect.promise(() => new Promise<void>((r) => setImmediate(r))), () => Effect.void); yield* cycle; }
    const u = process.cpuUsage(t)
    all.push((u.user + u.system) / 10000)
  }
  all.sort((a, b) => a - b); console.error("min", all[0].toFixed(1), "median", all[all.length >> 1].toFixed(1))
}).pipe(Effect.provide(L), Effect.provideService(References.MinimumLogLevel, process.env.LOG ? "Info" : "None"), Effect.provide(Logger.layer([Logger.withConsoleLog(Logger.formatLogFmt)])))
Effect.runPromise(main as any).then(() => process.exit(0))
