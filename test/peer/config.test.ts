/**
 * The peer's URL, ports, certificate and limits, case by case: see CASES.md.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as HttpEffect from "effect/http/HttpEffect"
import * as Layer from "effect/Layer"
import * as PlatformError from "effect/PlatformError"
import { layerFromEnv, workerConfig } from "../../src/config.ts"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"
import * as OnClose from "../../src/session/OnClose.ts"
import * as Session from "../../src/session/Session.ts"
import * as SessionJournal from "../../src/session/SessionJournal.ts"
import * as SessionSlot from "../../src/session/SessionSlot.ts"
import * as Listener from "../../src/worker/Listener.ts"
import * as RequestAuth from "../../src/worker/RequestAuth.ts"
import * as WorkerServer from "../../src/worker/WorkerServer.ts"
import { environment, instance } from "./worker.ts"

const load = (env: Record<string, string>) => Effect.provide(workerConfig, environment({ ...instance, ...env }))

describe("the advertised URL", () => {
  it.effect.each<[string, string, string, string, string]>([
    ["http", "false", "8080", "18080", "192.168.1.5"],
    ["https", "true", "9000", "19000", "10.1.2.3"]
  ])("is %s with USE_SSL=%s", ([scheme, ssl, port, mapped, address]) =>
    Effect.gen(function* () {
      const { url } = yield* load({
        USE_SSL: ssl,
        WORKER_PORT: port,
        [`VAST_TCP_PORT_${port}`]: mapped,
        PUBLIC_IPADDR: address
      })
      assert.strictEqual(url, `${scheme}://${address}:${mapped}`)
    })
  )
})

/** Where a worker with these settings would listen, and what answers there. */
const listening = (env: Record<string, string>, files: (path: string) => string | undefined = () => "PEM") => {
  const at: Array<{ readonly app: Listener.App; readonly address: Listener.Address }> = []
  const worker = WorkerServer.layer([]).pipe(
    Layer.provide(Session.layer),
    Layer.provide(SessionJournal.layerMemory),
    Layer.provide(Layer.succeed(OnClose.OnClose, { deliver: () => Effect.void })),
    Layer.provide([SessionSlot.layerCapacity(1), MetricsReporter.layerTest, RequestAuth.layerOff]),
    Layer.provide(
      Layer.succeed(Listener.Listener, { listen: (app, address) => Effect.sync(() => void at.push({ app, address })) })
    ),
    Layer.provide(
      FileSystem.layerNoop({
        readFileString: (path) =>
          Effect.mapError(Effect.fromNullishOr(files(path)), () =>
            PlatformError.systemError({ _tag: "NotFound", module: "FileSystem", method: "readFileString" })
          )
      })
    ),
    Layer.provide(layerFromEnv),
    Layer.provide(environment({ ...instance, ...env }))
  )
  return Effect.as(Layer.build(worker), at)
}

describe("the ports", () => {
  it.effect("are the worker's, and the next one for plain HTTP when nobody says another", () =>
    Effect.gen(function* () {
      const named = { WORKER_PORT: "7122", VAST_TCP_PORT_7122: "7122" }
      const next = yield* listening(named)
      assert.deepStrictEqual(
        next.map(({ address }) => address),
        [{ port: 7122 }, { port: 7123, host: "127.0.0.1" }]
      )
      const said = yield* listening({ ...named, WORKER_HTTP_PORT: "9101" })
      assert.strictEqual(said[1]?.address.port, 9101)
    })
  )

  it.effect("serve the session routes, and on plain HTTP the end of a session alone", () =>
    Effect.gen(function* () {
      const [tls, plain] = (yield* listening({})).map(({ app }) => HttpEffect.toWebHandler(app))
      const found = (handler: typeof tls) =>
        Effect.filter(["/session/create", "/session/end", "/session/get", "/session/health"], (path) =>
          Effect.promise(async () => {
            const response = await handler?.(new Request(`http://worker${path}`, { method: "POST", body: "{" }))
            return response?.status === 422
          })
        )
      assert.deepStrictEqual(yield* found(tls), ["/session/create", "/session/end", "/session/get", "/session/health"])
      assert.deepStrictEqual(yield* found(plain), ["/session/end"])
    })
  )
})

describe("the certificate", () => {
  it.effect("is the instance's with USE_SSL=true, for the worker's port alone", () =>
    Effect.gen(function* () {
      const [secured, plain] = yield* listening({ USE_SSL: "true" }, (path) => `PEM of ${path}`)
      assert.deepStrictEqual(secured?.address.tls, { cert: "PEM of /etc/instance.crt", key: "PEM of /etc/instance.key" })
      assert.notProperty(plain?.address, "tls")
      assert.notProperty((yield* listening({}))[0]?.address, "tls")
    })
  )

  it.effect("fails the launch when it cannot be read, before anybody listens", () =>
    Effect.gen(function* () {
      const refused = yield* Effect.flip(listening({ USE_SSL: "true" }, () => undefined))
      assert.strictEqual(refused._tag, "CertificateUnreadable")
    })
  )
})

describe("the limit on sessions", () => {
  it.effect("is one when nobody says another, and what is no limit is refused at launch", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* load({})).maxSessions, 1)
      assert.strictEqual((yield* load({ MAX_SESSIONS: "5" })).maxSessions, 5)
      for (const limit of ["-1", "0"]) {
        assert.strictEqual((yield* Effect.flip(load({ MAX_SESSIONS: limit }))).variable, "MAX_SESSIONS")
      }
    })
  )
})
