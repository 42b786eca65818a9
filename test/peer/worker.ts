/**
 * A worker's public port without a port, in the test's own time: what the peer's tests build of their backend and its mocks.
 */
import { generateKeyPairSync, sign } from "node:crypto"
import * as Clock from "effect/Clock"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientError from "effect/http/HttpClientError"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Config from "../../src/config.ts"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"
import { signedMessage } from "../../src/protocol/AuthData.ts"
import * as OnClose from "../../src/session/OnClose.ts"
import * as Session from "../../src/session/Session.ts"
import * as SessionJournal from "../../src/session/SessionJournal.ts"
import * as SessionSlot from "../../src/session/SessionSlot.ts"
import type * as Handler from "../../src/worker/Handler.ts"
import * as Refusals from "../../src/worker/Refusals.ts"
import * as RequestAuth from "../../src/worker/RequestAuth.ts"
import * as WorkerServer from "../../src/worker/WorkerServer.ts"

/** What every instance sets. */
export const instance = { CONTAINER_ID: "1", PUBLIC_IPADDR: "1.2.3.4", VAST_TCP_PORT_3000: "30123" }

/** The URL that this instance advertises. */
export const url = "http://1.2.3.4:30123"

/** Settings as an environment gives them. */
export const environment = (env: Record<string, string>) => ConfigProvider.layer(ConfigProvider.fromEnv({ env }))

/** The autoscaler's key pair, and what it signs. */
export const autoscaler = () => {
  const keys = generateKeyPairSync("rsa", { modulusLength: 2048 })
  const pem = keys.publicKey.export({ type: "spki", format: "pem" }).toString()
  return {
    pem,
    sign: (signed: string) => sign("RSA-SHA256", Buffer.from(signedMessage(signed)), keys.privateKey).toString("base64")
  }
}

/** A client of HTTP whose every request the test answers; one that is not answered is one that could not be sent. */
export const answering = (answer: (url: URL, body: string) => Response | undefined | Effect.Effect<never>) =>
  Layer.succeed(
    HttpClient.HttpClient,
    HttpClient.make((request, to) =>
      Effect.suspend(() => {
        const answered = answer(to, request.body._tag === "Uint8Array" ? new TextDecoder().decode(request.body.body) : "")
        if (Effect.isEffect(answered)) return answered
        if (answered !== undefined) return Effect.succeed(HttpClientResponse.fromWeb(request, answered))
        const reason = new HttpClientError.TransportError({ request, description: "refused" })
        return Effect.fail(new HttpClientError.HttpClientError({ reason }))
      })
    )
  )

/** `auth_data` with all that the autoscaler gives, and what the test says besides. */
export const authData = (more: Record<string, unknown> = {}) => ({
  cost: 100,
  endpoint: "e",
  reqnum: 1,
  request_idx: 1,
  signature: "s",
  url,
  ...more
})

interface Options {
  readonly handlers?: ReadonlyArray<Handler.Handler>
  readonly capacity?: number
  readonly auth?: Layer.Layer<RequestAuth.RequestAuth, never, Config.WorkerConfig>
  /** What the routes get instead of the sessions themselves. */
  readonly sessions?: (sessions: Session.Sessions["Service"]) => Session.Sessions["Service"]
}

/** Serves these handlers beside the session routes. */
export const serving = Effect.fnUntraced(function* ({
  auth = RequestAuth.layerOff,
  capacity = 1,
  handlers = [],
  sessions = (actual) => actual
}: Options = {}) {
  const callbacks: Array<OnClose.Callback> = []
  const services = yield* Layer.build(
    Layer.effect(Session.Sessions, Effect.map(Session.Sessions, sessions)).pipe(
      Layer.provide(Session.layer),
      Layer.provide(SessionJournal.layerMemory),
      Layer.provide(Layer.succeed(OnClose.OnClose, { deliver: (callback) => Effect.sync(() => void callbacks.push(callback)) })),
      Layer.provide(SessionSlot.layerCapacity(capacity)),
      Layer.provideMerge(Layer.mergeAll(MetricsReporter.layerTest, auth, FileSystem.layerNoop({}))),
      Layer.provideMerge(Config.layerFromEnv),
      Layer.provide(environment(instance))
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
  const quietly = Context.make(Clock.Clock, yield* Clock.Clock).pipe(Context.add(References.MinimumLogLevel, "None"))
  const send = (path: string, body: string) =>
    Effect.promise((signal) => app.handler(new Request(`${url}${path}`, { method: "POST", body, signal }), quietly))
  const postText = (path: string, text: string) =>
    Effect.gen(function* () {
      const response = yield* send(path, text)
      // biome-ignore lint/suspicious/noExplicitAny: these are bodies off the wire
      return { status: response.status, body: (yield* Effect.promise(() => response.json())) as any }
    })
  const post = (path: string, body: unknown) => postText(path, JSON.stringify(body))
  /** Opens a session and says its id and its key. */
  const open = (payload: unknown = {}, session_auth = authData()) =>
    Effect.map(post("/session/create", { auth_data: session_auth, payload }), ({ body }) => ({
      session_id: String(body.session_id),
      session_auth
    }))
  const reports = yield* Effect.provide(MetricsReporter.RecordedReports, services)
  const reporter = yield* Effect.provide(MetricsReporter.MetricsReporter, services)
  return { callbacks, open, post, postText, reporter, reports, send }
})

/** Other fibers and promises get on until this holds; nothing here waits for time to pass. */
export const until = (holds: () => boolean) => Effect.yieldNow.pipe(Effect.repeat({ until: holds, times: 10_000 }))
